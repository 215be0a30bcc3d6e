//go:build linux

package steady

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/credential-broker/credential-broker/broker/agent/fast"
)

var flagUpdate = flag.Bool("update", false, "record what the program costs now, in "+recordFile)

const (
	recordFile = "testdata/recorded.json"

	// mostInstructions holds with every version of Go, for a program that answers from an agent after the runtime has started. Nearly all of it is the runtime's, for the tables of so large a program.
	mostInstructions = 900_000
	// mostFaults is by how many times an empty program's page faults such a program may have, with every version of Go.
	mostFaults = 1.75
	// mostOfEmpty is how much of what an empty program costs, of either kind, one may cost that answers before the runtime has started; with every version of Go too.
	mostOfEmpty = 0.5
	// mostGrowth is by how much more than what is recorded it may cost, of either kind.
	mostGrowth = 1.10
)

// cost of a run: the smallest of several, since threads of the runtime's own come and go.
type cost struct {
	Instructions int `json:"instructions"` // in user space
	Faults       int `json:"faults"`       // pages that the kernel had to provide, none of them from a disk
}

// recorded is what it cost when somebody last looked. Another version of Go has another runtime, and another processor other instructions.
type recorded struct {
	Go       string `json:"go"`
	Platform string `json:"platform"`
	Program  cost   `json:"program"`
	Plain    cost   `json:"plain"` // as go install makes it: the runtime's start is part of it
	Empty    cost   `json:"empty"`
}

func TestTheProgramCostsNoMoreThanItDid(t *testing.T) {
	agent := newAgent(t, always(fast.Reply{Stdout: []byte(`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","auth":{"registry.example":{"username":"u","password":"p"}}}` + "\n")}))
	now := recorded{Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	for _, measured := range []struct {
		file string
		cost *cost
	}{{program, &now.Program}, {empty, &now.Empty}, {plain, &now.Plain}} {
		measured.cost.Faults = smallest(30, func() int { return faults(t, measured.file, agent.socket) })
		if valgrind(t) {
			measured.cost.Instructions = smallest(7, func() int { return instructions(t, measured.file, agent.socket) })
		}
	}
	t.Logf("instructions: %d, after the runtime %d, an empty program %d; page faults: %d, %d, %d",
		now.Program.Instructions, now.Plain.Instructions, now.Empty.Instructions, now.Program.Faults, now.Plain.Faults, now.Empty.Faults)
	if n := len(agent.requests()); n < 60 {
		t.Fatalf("the agent was asked only %d times: something else was measured", n)
	}
	if now.Plain.Instructions > mostInstructions {
		t.Errorf("%d instructions in user space after the runtime, more than %d", now.Plain.Instructions, mostInstructions)
	}
	if most := mostFaults * float64(now.Empty.Faults); float64(now.Plain.Faults) > most {
		t.Errorf("%d page faults after the runtime, more than %.0f: %g times those of an empty program", now.Plain.Faults, most, mostFaults)
	}
	if most := mostOfEmpty * float64(now.Empty.Instructions); float64(now.Program.Instructions) > most {
		t.Errorf("%d instructions in user space, more than %.0f: %g times those of an empty program", now.Program.Instructions, most, mostOfEmpty)
	}
	if most := mostOfEmpty * float64(now.Empty.Faults); float64(now.Program.Faults) > most {
		t.Errorf("%d page faults, more than %.0f: %g times those of an empty program", now.Program.Faults, most, mostOfEmpty)
	}
	if *flagUpdate {
		now.write(t)
		return
	}

	then := read(t)
	if then.Go != now.Go || then.Platform != now.Platform {
		t.Logf("NOT RUN: comparison with what is recorded, which is of %s on %s: record it anew with go test -run Costs -update", then.Go, then.Platform)
		return
	}
	// In proportion to an empty program, which says what another kernel or machine adds to both.
	for _, built := range []struct {
		how       string
		now, then cost
	}{{"as releases are", now.Program, then.Program}, {"as go install does", now.Plain, then.Plain}} {
		if most := mostGrowth * float64(built.then.Instructions) * ratio(now.Empty.Instructions, then.Empty.Instructions); float64(built.now.Instructions) > most {
			t.Errorf("built %s: %d instructions in user space, more than %.0f: %d were recorded", built.how, built.now.Instructions, most, built.then.Instructions)
		}
		if most := mostGrowth * float64(built.then.Faults) * ratio(now.Empty.Faults, then.Empty.Faults); float64(built.now.Faults) > most {
			t.Errorf("built %s: %d page faults, more than %.0f: %d were recorded", built.how, built.now.Faults, most, built.then.Faults)
		}
	}
}

func ratio(a, b int) float64 { return float64(a) / float64(max(b, 1)) }

func smallest(times int, measure func() int) int {
	least := measure()
	for range times - 1 {
		least = min(least, measure())
	}
	return least
}

// faults is how many page faults a run of file has.
func faults(t *testing.T, file, socket string) int {
	t.Helper()
	cmd := exec.Command(file)
	cmd.Env, cmd.Stdin = environment(socket), strings.NewReader(aRequest)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", file, err, output)
	}
	return int(cmd.ProcessState.SysUsage().(*syscall.Rusage).Minflt)
}

// valgrind says whether instructions can be counted.
func valgrind(t *testing.T) bool {
	t.Helper()
	_, err := exec.LookPath("valgrind")
	if err != nil {
		t.Log("NOT RUN: instructions in user space are counted with valgrind, which is not there")
	}
	return err == nil
}

// instructions is how many a run of file executes in user space.
func instructions(t *testing.T, file, socket string) int {
	t.Helper()
	cmd := exec.Command("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", file)
	// What valgrind 3.19 does not survive: the signal by which the runtime interrupts whatever computes for long, as a program does that valgrind slows down, and an instruction that reads a clock.
	cmd.Env, cmd.Stdin = append(environment(socket), "GODEBUG=asyncpreemptoff=1,cpu.rdtscp=off"), strings.NewReader(aRequest)
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("valgrind %s: %v\n%s", file, err, output)
	}
	match := regexp.MustCompile(`Collected : (\d+)`).FindSubmatch(output)
	if match == nil {
		t.Fatalf("valgrind %s: no count in\n%s", file, output)
	}
	n, err := strconv.Atoi(string(match[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func read(t *testing.T) (r recorded) {
	t.Helper()
	data, err := os.ReadFile(recordFile)
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err == nil && (r.Program == cost{} || r.Plain == cost{} || r.Empty == cost{}) {
		err = errors.New("it says nothing")
	}
	if err != nil {
		t.Fatalf("%s: %v", recordFile, err)
	}
	return r
}

func (r recorded) write(t *testing.T) {
	t.Helper()
	if r.Program.Instructions == 0 {
		t.Fatal("nothing is recorded without valgrind")
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(recordFile, append(data, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}
