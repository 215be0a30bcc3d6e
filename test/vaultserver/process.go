package vaultserver

import (
	"fmt"
	"os/exec"
	"runtime"
	"sync"
)

// process is a server's.
type process struct {
	cmd    *exec.Cmd
	output *output
	ended  chan struct{} // closed once it has ended
}

// startProcess starts cmd on a thread that lives until cmd has ended: the signal that ends a child with its parent is sent when the thread dies that started it.
func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, output: &output{}, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = p.output, p.output, attributes()
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended says its output
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting the Vault server: %w", err)
	}
	return p, nil
}

// end kills the process, which has nothing to tidy up: all it has is in memory.
func (p *process) end() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// output keeps the end of what a process says, for when it has to be told why it ended.
type output struct {
	mu   sync.Mutex
	text []byte
}

// outputBytes is how much is kept.
const outputBytes = 64 << 10

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, b...)
	if len(o.text) > 2*outputBytes {
		o.text = append([]byte(nil), o.text[len(o.text)-outputBytes:]...)
	}
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text[max(0, len(o.text)-outputBytes):])
}
