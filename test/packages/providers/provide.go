//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// The login that the kubelet's providers give.
const (
	legacyUser     = "robot"
	legacyPassword = "a-secret"
)

// provide answers the kubelet's request, provided that first does not fail.
func provide(first func() error) error {
	var request struct{ APIVersion, Image string }
	if err := json.NewDecoder(os.Stdin).Decode(&request); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	if err := first(); err != nil {
		return err
	}
	_, err := io.WriteString(os.Stdout, legacyAnswer(request.Image))
	return err
}

// legacyAnswer is what a provider of the kubelet's says.
func legacyAnswer(key string) string {
	return fmt.Sprintf(`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Image","cacheDuration":"1m","auth":{%q:{"username":%q,"password":%q}}}`,
		key, legacyUser, legacyPassword)
}

// makesCode maps memory that can be written and executed, as the runtimes of Java and JavaScript do, and Python's ctypes.
func makesCode() error {
	memory, err := syscall.Mmap(-1, 0, os.Getpagesize(), syscall.PROT_READ|syscall.PROT_WRITE|syscall.PROT_EXEC, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return fmt.Errorf("map memory for code that is made at run time: %w", err)
	}
	return syscall.Munmap(memory)
}

// mounts makes a system call that the unit's filter does not have, and takes EPERM for an answer, as a program does that merely tries.
func mounts() error {
	err := syscall.Mount("none", "/mnt", "tmpfs", 0, "")
	if errors.Is(err, syscall.EPERM) {
		return nil
	}
	if err == nil {
		return errors.New("the unit lets its processes mount")
	}
	return fmt.Errorf("mounting is not answered with EPERM: %w", err)
}
