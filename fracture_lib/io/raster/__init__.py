"""Image files other than DICOM: `decode` is the entry; the other modules are its formats."""
