package backends

import (
	"fmt"
	"os"
	"strings"
	"testing"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

func TestServeForbidsCoreFiles(t *testing.T) {
	h := startBackend(t, "backend")
	if _, err := h.Describe(t.Context(), &backendv1.DescribeRequest{}); err != nil {
		t.Fatal(err)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", h.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if rest, ok := strings.CutPrefix(line, "Max core file size"); ok {
			if f := strings.Fields(rest); (f[0] != "1" && f[0] != "0") || f[0] != f[1] {
				t.Errorf("core files: %s", rest)
			}
		}
	}
	// What is not dumpable belongs to root in /proc, and nobody else may look inside (proc(5)).
	if os.Geteuid() != 0 {
		if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", h.cmd.Process.Pid)); err == nil {
			t.Error("another process of this user can look inside")
		}
	}
}
