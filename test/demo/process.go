package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// patience bounds every wait for a process.
const patience = 10 * time.Second

// awaitHanging waits until the provider says that it hangs, and returns its process id.
func (d *demo) awaitHanging(ctx context.Context) (int, error) {
	var pid int
	err := await(ctx, func() error {
		text, err := os.ReadFile(filepath.Join(d.dir, "hanging"))
		if err != nil {
			return err
		}
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err
	})
	return pid, err
}

// awaitGone waits until the processes have ended.
func awaitGone(ctx context.Context, pids ...int) error {
	return await(ctx, func() error {
		for _, pid := range pids {
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("process %d is still there", pid)
			}
		}
		return nil
	})
}

// await calls done until it returns nil, and gives back its error if it never does.
func await(ctx context.Context, done func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := done()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// childOf finds which child of a process another one descends from.
func childOf(ancestor, pid int) (int, error) {
	for at := pid; at > 1; {
		parent, err := parentOf(at)
		if err != nil {
			return 0, err
		}
		if parent == ancestor {
			return at, nil
		}
		at = parent
	}
	return 0, fmt.Errorf("process %d does not descend from the broker's, %d", pid, ancestor)
}

func parentOf(pid int) (int, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil { // no Linux
		out, err := exec.Command("ps", "-o", "ppid=", "-p", strconv.Itoa(pid)).Output()
		if err != nil {
			return 0, fmt.Errorf("find the parent of process %d: %w", pid, err)
		}
		return strconv.Atoi(strings.TrimSpace(string(out)))
	}
	// "pid (name) state ppid …", where the name may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return 0, fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	return strconv.Atoi(fields[1])
}

func kill(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }
