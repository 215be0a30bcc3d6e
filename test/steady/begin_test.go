//go:build linux && (amd64 || arm64)

package steady

import (
	"bytes"
	"debug/elf"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const earlyPath = "github.com/credential-broker/credential-broker/broker/agent/fast."

// Whoever begins elsewhere begins with Go's runtime, which works too, and so would be noticed by nobody.
func TestAReleaseBeginsWithTheEarlyPath(t *testing.T) {
	for path, want := range map[string]string{program: earlyPath + "entry", plain: "_rt0_" + runtime.GOARCH + "_linux"} {
		file, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		symbols, err := file.Symbols()
		_ = file.Close()
		if err != nil {
			t.Fatal(err)
		}
		begin := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Value == file.Entry && elf.ST_TYPE(s.Info) == elf.STT_FUNC })
		if begin < 0 || symbols[begin].Name != want {
			t.Errorf("%s begins at %#x, which is not %s", path, file.Entry, want)
		}
	}
}

// harmless are functions of the runtime's that need nothing of it: they move, clear and compare bytes, and make system calls.
var harmless = []string{
	"runtime.memmove", "runtime.memequal", "runtime.memclrNoHeapPointers", "runtime.duffzero", "runtime.duffcopy", "cmpstring", "runtime.cmpstring", "syscall.RawSyscall6",
}

// neverCome are functions that the compiler has called where they cannot come to it, or where nothing is left to do: no stack ends, no garbage collection runs, and what is out of bounds ends the process.
var neverCome = []string{"runtime.morestack", "runtime.gcWriteBarrier", "runtime.panic"}

// guarded are calls that are made only where the runtime runs, or where a buffer has to grow: the early path's are large enough. By caller, without package.
var guarded = map[string][]string{
	"join":               {"runtime.makeslice"},
	"blockingCall":       {"syscall.Syscall6"},
	"poll":               {"syscall.Syscall6"},
	"appendRequestHead":  {"runtime.growslice"},
	"connection.receive": {"runtime.makeslice", "runtime.growslice"},
}

// Before the runtime there is no heap, no goroutine and no scheduler. So nothing that the early path may call may want one: neither what is written in its source, nor what the compiler makes of that.
func TestTheEarlyPathNeedsNoRuntime(t *testing.T) {
	listing, err := exec.Command("go", "tool", "objdump", "-s", "^"+regexp.QuoteMeta(earlyPath), program).Output()
	if err != nil {
		t.Fatal(err)
	}
	calls, indirect := map[string][]string{}, map[string]string{}
	caller := ""
	call := regexp.MustCompile(`\s(?:CALL|JMP|BL|B)\s+(\S+)$`)
	for line := range bytes.Lines(listing) {
		text := strings.TrimRight(string(line), "\n\t ")
		if name, ok := strings.CutPrefix(text, "TEXT "); ok {
			caller = strings.TrimPrefix(strings.TrimSuffix(strings.Fields(name)[0], "(SB)"), earlyPath)
			continue
		}
		match := call.FindStringSubmatch(text)
		if match == nil {
			continue
		}
		if to, ok := strings.CutSuffix(match[1], "(SB)"); ok {
			calls[caller] = append(calls[caller], to)
		} else if !strings.HasPrefix(match[1], "0x") && !strings.HasSuffix(match[1], "(PC)") { // a jump within the function
			indirect[caller] = match[1]
		}
	}
	if len(calls["early"]) < 10 || len(indirect) != 1 || indirect["entry"] == "" {
		t.Fatalf("the early path's calls are not seen in what the program consists of: %q of early, and by an address %q, where only entry does that", calls["early"], indirect)
	}

	reached := []string{"early"}
	for i := 0; i < len(reached); i++ {
		for _, to := range calls[reached[i]] {
			own, isOwn := strings.CutPrefix(to, earlyPath)
			switch {
			case isOwn:
				if !slices.Contains(reached, own) {
					reached = append(reached, own)
				}
			case slices.Contains(harmless, to), slices.Contains(guarded[reached[i]], to), slices.ContainsFunc(neverCome, func(f string) bool { return strings.HasPrefix(to, f) }):
			default:
				t.Errorf("%s calls %s", reached[i], to)
			}
		}
	}
	for _, function := range []string{"connection.exchange", "readInput", "deliver", "join", "blockingCall"} {
		if !slices.Contains(reached, function) {
			t.Errorf("%s is not reached: %q", function, reached)
		}
	}
}
