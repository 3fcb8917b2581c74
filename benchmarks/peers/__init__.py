"""Plain services in other frameworks, each written as its documentation shows, over one model."""
