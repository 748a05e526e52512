"""channelcoder-flows."""
