"""The gRPC contract and the code generated from it by `scripts/generate-proto`; never edited."""
