"""One file a resource; each exports its ROUTES, which `app` puts into one dictionary."""
