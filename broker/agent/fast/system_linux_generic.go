//go:build arm64 || loong64 || riscv64

package fast

// The numbers of the system calls on the platforms that share asm-generic/unistd.h.
const (
	sysOpenat       = 56
	sysClose        = 57
	sysRead         = 63
	sysWrite        = 64
	sysPpoll        = 73
	sysExitGroup    = 94
	sysClockGettime = 113
	sysRtSigaction  = 134
	sysPrctl        = 167
	sysGeteuid      = 175
	sysSocket       = 198
	sysConnect      = 203
	sysSendto       = 206
	sysSetsockopt   = 208
	sysGetsockopt   = 209
	sysMadvise      = 233
	sysPrlimit64    = 261
	sysStatx        = 291
)
