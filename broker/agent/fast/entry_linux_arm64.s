#include "textflag.h"

// The process's first instruction in a release: see begin_linux.go. On the stack are the arguments, which the runtime wants to find there. Go's functions expect their goroutine in g.
TEXT ·entry(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
	MOVD $·noGoroutine(SB), g
	MOVD ·beforeRuntime(SB), R26
	MOVD (R26), R0
	BL   (R0)
	B    _rt0_arm64_linux(SB)
