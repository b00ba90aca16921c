"""DICOM files: `reader` is the entry; the other modules are its steps."""
