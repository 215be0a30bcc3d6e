package guardian

import (
	"os/exec"
	"slices"
	"testing"
)

func TestBothWaysFindTheChildren(t *testing.T) {
	var want []int
	for range 3 {
		cmd := exec.Command("sleep", "60")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		want = append(want, cmd.Process.Pid)
	}
	slices.Sort(want)
	if got, ok := childrenOfThreads(); !ok {
		t.Log("this kernel has no /proc/self/task/*/children")
	} else if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("by thread: %d, want %d", got, want)
	}
	if got := childrenByParent(); !slices.Equal(got, want) {
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("by parent: %d, want %d", got, want)
		}
	}
}

func TestParent(t *testing.T) {
	for stat, want := range map[string]int{
		"12 (sh) S 34 12 12 0":         34,
		"12 (a) S 1 (b) S 34 12 12 0":  34,
		"12 ()) R 5 ":                  5,
		"12 (sh":                       0,
		"12 (sh)":                      0,
		"12 (sh) S":                    0,
		"":                             0,
		"12 (sh) S 99999999999999 1 1": -1,
	} {
		if got := parent([]byte(stat)); got != want {
			t.Errorf("parent(%q) = %d, want %d", stat, got, want)
		}
	}
}
