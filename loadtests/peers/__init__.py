"""The peers onetrip is compared with, each configured as its experts would, and what runs them side by side."""
