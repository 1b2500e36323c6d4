# What other compiled modules may call without the interpreter.

cdef int enter(int fd) noexcept nogil
