"""Pure tensor algebra: no files, no models, no prints."""
