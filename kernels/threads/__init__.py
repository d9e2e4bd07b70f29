"""Running compiled tasks on several threads.

``atomics`` has the operations that threads meet at, ``pool`` the threads, ``tasks`` what kernels
use: ``run_tasks(pool, n_tasks, function, arguments)``.
"""
