"""All tensor algebra, pure: no files, no models, no prints."""
