"""The commands: policy, folders, flags and progress around the library."""
