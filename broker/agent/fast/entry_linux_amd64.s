#include "textflag.h"

// The process's first instruction in a release: see begin_linux.go. On the stack are the arguments, which the runtime wants to find there. Go's functions expect their goroutine in R14, and zero in X15.
TEXT ·entry(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
	XORPS X15, X15
	LEAQ  ·noGoroutine(SB), R14
	MOVQ  ·beforeRuntime(SB), DX
	CALL  (DX)
	JMP   _rt0_amd64_linux(SB)
