"""The agent: runs commands in a guest or in the dev box for a peer at the end of a byte stream."""
