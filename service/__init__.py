"""fivecrop serves image-classifier bundles over HTTP and gRPC."""
