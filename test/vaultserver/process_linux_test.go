package vaultserver

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// killedVariable makes the test's own executable a process that starts a server, says which process that is, and waits to be killed.
const killedVariable = "VAULTSERVER_TEST_KILLED"

func TestMain(m *testing.M) {
	if os.Getenv(killedVariable) != "" {
		s, err := Start(Options{})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Fprintln(os.Stdout, s.PID())
		select {}
	}
	os.Exit(m.Run())
}

func TestTheServerDoesNotOutliveAKilledTest(t *testing.T) {
	if testing.Short() && Built() == "" {
		t.Skip("the Vault server has not been built on this machine, which takes long: make vault-server")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), killedVariable+"=1", "TMPDIR="+t.TempDir()), os.Stderr
	said, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(said).ReadString('\n')
	pid, _ := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid == 0 || ended(pid) {
		t.Fatalf("it did not start a server: %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	deadline, tick := time.After(patience), time.NewTicker(5*time.Millisecond)
	defer tick.Stop()
	for !ended(pid) {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the server, process %d, is still there", pid)
		}
	}
}

// ended says whether a process is gone, or waits for somebody to notice that it has ended.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(stat), ") ") // of a name that has none of these itself
	return strings.HasPrefix(state, "Z")
}
