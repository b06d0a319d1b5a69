"""Several members generate one text: requests, batches, sampling, likelihoods."""
