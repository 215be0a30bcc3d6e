//go:build linux && (amd64 || arm64)

package steady

import (
	"bytes"
	"debug/elf"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const earlyPath = "github.com/credential-broker/credential-broker/broker/agent/fast."

// releases are the programs that begin with the early path, by processor. The one of this machine is built already.
func releases(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{runtime.GOARCH: program}
	for _, arch := range []string{"amd64", "arm64"} {
		if files[arch] == "" {
			dir := t.TempDir()
			files[arch] = filepath.Join(dir, "credential-broker")
			build := release(dir)
			build.Env = append(build.Env, "GOARCH="+arch)
			if output, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", build, err, output)
			}
		}
	}
	return files
}

// Whoever begins elsewhere begins with Go's runtime, which works too, and so would be noticed by nobody.
func testBegin(t *testing.T, path, want string) {
	t.Helper()
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

func TestAReleaseBeginsWithTheEarlyPath(t *testing.T) {
	testBegin(t, plain, "_rt0_"+runtime.GOARCH+"_linux")
	for arch, file := range releases(t) {
		t.Run(arch, func(t *testing.T) {
			testBegin(t, file, earlyPath+"entry")
			testCalls(t, file)
		})
	}
}

// harmless are functions of the runtime's that need nothing of it: they move, clear and compare bytes, and make system calls.
var harmless = []string{
	"runtime.memmove", "runtime.memequal", "runtime.memclrNoHeapPointers", "runtime.duffzero", "runtime.duffcopy", "cmpstring", "runtime.cmpstring",
	"syscall.RawSyscall6", "internal/runtime/syscall/linux.Syscall6", "internal/runtime/syscall/linux.Syscall6.abi0",
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
func testCalls(t *testing.T, file string) {
	t.Helper()
	calls, indirect := callsIn(t, file, "^("+regexp.QuoteMeta(earlyPath)+"|"+regexp.QuoteMeta("syscall.RawSyscall6")+"$)")
	if len(calls[earlyPath+"early"]) < 10 || len(indirect) != 1 || !indirect[earlyPath+"entry"] {
		t.Fatalf("the early path's calls are not seen in what the program consists of: %q of early, and by an address those of %v, where only entry does that", calls[earlyPath+"early"], indirect)
	}
	for function := range calls {
		// What a variable is made of when the program starts is not there before.
		if name, ok := strings.CutPrefix(function, earlyPath); ok && (name == "init" || strings.HasPrefix(name, "map.init")) {
			t.Errorf("%s gives variables their first values, which they do not have yet before the runtime", name)
		}
	}

	reached := []string{earlyPath + "begin", "syscall.RawSyscall6"}
	for i := 0; i < len(reached); i++ {
		caller := strings.TrimPrefix(reached[i], earlyPath)
		for _, to := range calls[reached[i]] {
			switch {
			case strings.HasPrefix(to, earlyPath):
				if !slices.Contains(reached, to) {
					reached = append(reached, to)
				}
			case slices.Contains(harmless, to), slices.Contains(guarded[caller], to), slices.ContainsFunc(neverCome, func(f string) bool { return strings.HasPrefix(to, f) }):
			default:
				t.Errorf("%s calls %s", caller, to)
			}
		}
	}
	for _, function := range []string{"connection.exchange", "readInput", "deliver", "join", "blockingCall"} {
		if !slices.Contains(reached, earlyPath+function) {
			t.Errorf("%s is not reached: %q", function, reached)
		}
	}
}

// callsIn are the functions that functions call or go on to, and those that have an address called which is not known.
func callsIn(t *testing.T, file, functions string) (calls map[string][]string, indirect map[string]bool) {
	t.Helper()
	listing, err := exec.Command("go", "tool", "objdump", "-s", functions, file).Output()
	if err != nil {
		t.Fatal(err)
	}
	calls, indirect = map[string][]string{}, map[string]bool{}
	caller := ""
	call := regexp.MustCompile(`\s(CALL|JMP)\s+(\S+)$`)
	for line := range bytes.Lines(listing) {
		text := strings.TrimSpace(string(line))
		if name, ok := strings.CutPrefix(text, "TEXT "); ok {
			caller = strings.TrimSuffix(strings.Fields(name)[0], "(SB)")
			calls[caller] = nil
			continue
		}
		match := call.FindStringSubmatch(text)
		if match == nil {
			continue
		}
		within := match[1] == "JMP" && (strings.HasPrefix(match[2], "0x") || strings.HasSuffix(match[2], "(PC)"))
		if to, ok := strings.CutSuffix(match[2], "(SB)"); ok {
			calls[caller] = append(calls[caller], to)
		} else if !within {
			indirect[caller] = true
		}
	}
	return calls, indirect
}
