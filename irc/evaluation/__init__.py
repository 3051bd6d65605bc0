"""Reference results, scores, comparisons and costs."""
