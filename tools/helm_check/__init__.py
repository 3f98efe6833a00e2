"""`make helm-check`: what the official chart renders from the values of each region, checked with the manifests."""
