"""The handlers behind the guest ABI. They know guest memory and the ABI, and nothing of KVM."""
