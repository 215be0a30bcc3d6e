// Stub plays a credential provider as the kubelet would start it. The directory of the link it is started by holds <name>.json, its behaviour, and "step", the number of the lookup in
// a sequence; it appends what it was asked to <name>.log there, one JSON document a line.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/credential-broker/credential-broker/test/kubelet/internal/behaviour"
)

func main() {
	status, err := run(os.Args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, "stub:", err)
		os.Exit(70)
	}
	os.Exit(status)
}

func run(self string) (int, error) {
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 0, err
	}
	var request behaviour.Request
	if err := json.Unmarshal(in, &request); err != nil {
		return 0, err
	}
	var provider behaviour.Provider
	data, err := os.ReadFile(self + ".json")
	if err != nil {
		return 0, err
	}
	if err := json.Unmarshal(data, &provider); err != nil {
		return 0, err
	}
	step := 0
	if data, err := os.ReadFile(filepath.Join(filepath.Dir(self), "step")); err == nil {
		if step, err = strconv.Atoi(strings.TrimSpace(string(data))); err != nil {
			return 0, err
		}
	}
	log, err := os.OpenFile(self+".log", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	line, err := json.Marshal(struct {
		behaviour.Request
		Args []string `json:"args"`
		Env  string   `json:"env"`
	}{request, os.Args[1:], os.Getenv("STUB_ENV")})
	if err != nil {
		return 0, err
	}
	if _, err := log.Write(append(line, '\n')); err != nil {
		return 0, err
	}
	stdout, status := provider.Answer(request.Image, step).Write(request)
	if _, err := os.Stdout.Write(stdout); err != nil {
		return 0, err
	}
	return status, nil
}
