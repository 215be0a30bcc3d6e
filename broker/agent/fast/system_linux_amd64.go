package fast

// The numbers of the system calls, syscalls(2).
const (
	sysRead         = 0
	sysWrite        = 1
	sysClose        = 3
	sysRtSigaction  = 13
	sysMadvise      = 28
	sysSocket       = 41
	sysConnect      = 42
	sysSendto       = 44
	sysSetsockopt   = 54
	sysGetsockopt   = 55
	sysGeteuid      = 107
	sysPrctl        = 157
	sysClockGettime = 228
	sysExitGroup    = 231
	sysOpenat       = 257
	sysPpoll        = 271
	sysPrlimit64    = 302
	sysStatx        = 332
)
