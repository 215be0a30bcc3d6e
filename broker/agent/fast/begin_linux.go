//go:build amd64 || arm64 || loong64 || riscv64

package fast

// Where a process begins.
//
// A release's first instruction is entry (entry_linux_amd64.s, entry_linux_arm64.s), to which the linker's flag -E sets the program's entry point. It calls early before Go's runtime, and where that
// returns, goes to where every Go program begins. So an answer of the agent's costs what a program without a runtime costs, in a program of any size.
//
// Without that flag (go install), and on other processors, init calls it: after the runtime, and before nearly every other package.
//
// Before the runtime there is no heap, no other goroutine and no handler of signals; a stack does not grow, and a panic ends the process by a signal. So whatever early calls there allocates nothing
// and calls nothing of the runtime's but what moves, clears and compares bytes. test/steady reads that out of the program.

// running says that Go's runtime does: there is a heap, and others may want the processor while a system call takes long.
var running bool

// beforeRuntime is what entry calls. From a variable it has the address of what Go's functions call, not of what assembler's call, which would look for a goroutine first.
var beforeRuntime = begin //nolint:unused // by Go; entry uses it

func begin() {
	begun = true
	early(&attempt)
}

// begun says that entry has called early.
var begun bool

// noGoroutine is in the place of the goroutine while there is none. Each function compares the stack's end with it: there is none, at address 0.
var noGoroutine [512]byte //nolint:unused // by Go; entry uses it

func init() { //nolint:gochecknoinits // what is initialised after this does not happen where an agent answers
	running = true
	if !begun {
		begin()
	}
}
