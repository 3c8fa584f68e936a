"""Converters, one module a data set (imported as `fastad_tools`): where it lives on disk and how it becomes Samples."""
