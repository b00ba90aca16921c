"""Read images: files, DICOM, arrays and tensors."""
