"""Making networks robust against what chips do to them, one method a file."""
