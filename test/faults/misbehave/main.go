// Command misbehave is a backend, a kubelet credential provider and a docker credential helper that does wrong what FAULT in its environment (for the other two: its
// first argument) tells it to.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	switch base := filepath.Base(os.Args[0]); {
	case strings.HasPrefix(base, "docker-credential-"):
		helper(strings.TrimPrefix(base, "docker-credential-"))
	case len(os.Args) > 1 && os.Args[1] == "sleep":
		hang()
	case len(os.Args) == 3 && os.Args[1] == "dial":
		dial(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "attach":
		attach(int(number(os.Args[2])))
	case len(os.Args) > 1:
		mode, argument, _ := strings.Cut(os.Args[1], " ")
		provider(mode, argument)
	default:
		mode, argument, _ := strings.Cut(os.Getenv("FAULT"), " ")
		backend(mode, argument)
	}
}

// login is what the healthy and the leaky answer. It comes from a file, so that it is neither among the arguments nor in the environment.
type login struct {
	Key      string `json:"key"`
	Username string `json:"username"`
	Password string `json:"password"`
}

func readLogin() login {
	l := login{Key: "registry.example", Username: "somebody", Password: "something"}
	if file := os.Getenv("FAULT_LOGIN"); file != "" {
		must(0, json.Unmarshal(must(os.ReadFile(file)), &l))
	}
	return l
}

// leak prints all secrets in play the ways that careless programs do.
func leak(w io.Writer, l login, token string) {
	pair := l.Username + ":" + l.Password
	fmt.Fprintf(w, "password %s, quoted %q, pair %s, header Basic %s\n", l.Password, l.Password, pair, base64.StdEncoding.EncodeToString([]byte(pair)))
	if token != "" {
		fmt.Fprintf(w, "Authorization: Bearer %s\n", token)
	}
	record := must(json.Marshal(map[string]any{"level": "WARN", "msg": "login with " + l.Password, "token": token, "login": map[string]string{"password": l.Password}}))
	fmt.Fprintf(w, "%s\n", record)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func number(s string) int64 { return must(strconv.ParseInt(s, 10, 64)) }

// flood writes so many bytes; 0: without end.
func flood(f *os.File, size int64) {
	line := []byte(strings.Repeat("never again ", 5000) + "\n")
	for left := size; left > 0 || size == 0; left -= int64(len(line)) {
		if _, err := f.Write(line); err != nil {
			return
		}
	}
}

// fork starts a process that holds this one's standard streams open and sleeps; away: in a session of its own.
func fork(away bool) {
	cmd := &exec.Cmd{Path: must(os.Executable()), Args: []string{"misbehave", "sleep"}, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: away}
	must(0, cmd.Start())
}

// hang does nothing for good. The timer keeps Go's runtime from calling it a deadlock.
func hang() {
	for {
		<-time.After(time.Hour)
	}
}

func killSelf() {
	must(0, syscall.Kill(os.Getpid(), syscall.SIGKILL))
	hang()
}

// provider is a kubelet credential provider.
func provider(mode, argument string) {
	if mode == "deafgood" { // answers, and never reads its request
		fmt.Fprintln(os.Stdout, response(v1, "Registry", "1h", nil, readLogin()))
		return
	}
	var request struct {
		APIVersion string `json:"apiVersion"`
		Image      string `json:"image"`
		Token      string `json:"serviceAccountToken"`
	}
	must(0, json.Unmarshal(must(io.ReadAll(os.Stdin)), &request))
	l := readLogin()
	good := func() { fmt.Fprintln(os.Stdout, response(request.APIVersion, "Registry", "1h", nil, l)) }
	switch mode {
	case "good":
		good()
	case "slow":
		<-time.After(300 * time.Millisecond)
		good()
	case "hang":
		hang()
	case "hangAfterAnswer":
		good()
		hang()
	case "exit":
		fmt.Fprintln(os.Stderr, "no luck today")
		os.Exit(int(number(argument)))
	case "answerAndExit":
		good()
		os.Exit(int(number(argument)))
	case "silent":
	case "garbage":
		_, _ = io.CopyN(os.Stdout, must(os.Open("/dev/urandom")), 64<<10)
	case "truncated":
		fmt.Fprint(os.Stdout, strings.TrimSpace(response(request.APIVersion, "Registry", "1h", nil, l))[:80])
	case "twice":
		good()
		good()
	case "raw":
		fmt.Fprintln(os.Stdout, strings.ReplaceAll(argument, "'", `"`))
	case "version":
		fmt.Fprintln(os.Stdout, response(argument, "Registry", "1h", nil, l))
	case "cacheKeyType":
		fmt.Fprintln(os.Stdout, response(request.APIVersion, argument, "1h", nil, l))
	case "cacheDuration":
		fmt.Fprintln(os.Stdout, response(request.APIVersion, "Image", argument, nil, l))
	case "stdout":
		flood(os.Stdout, number(argument))
	case "stderr":
		flood(os.Stderr, number(argument))
		good()
	case "gigabyteAnswer": // valid JSON, and too much of it
		l.Password = here
		part := strings.Repeat("x", 1<<16)
		printAround(response(request.APIVersion, "Registry", "1h", nil, l), func(w io.Writer) {
			for left := number(argument); left > 0; left -= int64(len(part)) {
				fmt.Fprint(w, part)
			}
		})
	case "keys":
		l = login{Key: here, Username: "u", Password: "p"}
		printAround(response(request.APIVersion, "Image", "1h", nil, l), func(w io.Writer) {
			for i := range number(argument) - 1 {
				fmt.Fprintf(w, `registry.example/%d":{"username":"u","password":"p"},"`, i)
			}
			fmt.Fprintf(w, "registry.example/%d", number(argument)-1)
		})
	case "fork":
		fork(false)
		good()
	case "forkAway":
		fork(true)
		good()
	case "forkAndExit":
		fork(true)
		os.Exit(4)
	case "forkAndHang":
		fork(true)
		hang()
	case "kill":
		killSelf()
	case "segv":
		must(0, syscall.Kill(os.Getpid(), syscall.SIGSEGV))
		hang()
	case "panic":
		panic("bad day")
	case "closeStdout":
		must(0, os.Stdout.Close())
	case "leak":
		leak(os.Stderr, l, request.Token)
		good()
	case "leakAndExit":
		leak(os.Stderr, l, request.Token)
		good()
		os.Exit(int(number(argument)))
	case "leakGarbage":
		leak(os.Stderr, l, request.Token)
		leak(os.Stdout, l, request.Token)
	case "leakAndHang":
		leak(os.Stderr, l, request.Token)
		good()
		hang()
	case "leakPanic":
		good()
		panic("no luck with " + l.Password + " and " + request.Token)
	default:
		fmt.Fprintln(os.Stderr, "no such provider:", mode)
		os.Exit(3)
	}
}

// here is the place in an answer for what is written when the answer is printed.
const here = "HERE"

// printAround prints an answer as it goes. To make up a large one first takes a busy machine longer than a provider is given, and then the broker has nothing to refuse.
func printAround(answer string, write func(io.Writer)) {
	before, after, _ := strings.Cut(answer, here)
	w := bufio.NewWriterSize(os.Stdout, 1<<16)
	fmt.Fprint(w, before)
	write(w)
	fmt.Fprintln(w, after)
	must(0, w.Flush())
}

const v1 = "credentialprovider.kubelet.k8s.io/v1"

func response(version, cacheKeyType, cacheDuration string, auth map[string]map[string]string, l login) string {
	if auth == nil {
		auth = map[string]map[string]string{l.Key: {"username": l.Username, "password": l.Password}}
	}
	return string(must(json.Marshal(map[string]any{
		"apiVersion": version, "kind": "CredentialProviderResponse", "cacheKeyType": cacheKeyType, "cacheDuration": cacheDuration, "auth": auth,
	})))
}

// helper is a docker credential helper.
func helper(mode string) {
	_, _ = io.ReadAll(os.Stdin)
	l := readLogin()
	good := func() {
		fmt.Fprintf(os.Stdout, "{%q:%q,%q:%q,%q:%q}\n", "ServerURL", l.Key, "Username", l.Username, "Secret", l.Password)
	}
	switch mode {
	case "good":
		good()
	case "none":
		fmt.Fprintln(os.Stdout, "credentials not found in native keychain")
		os.Exit(1)
	case "hang":
		hang()
	case "exit":
		fmt.Fprintln(os.Stderr, "no luck today")
		os.Exit(5)
	case "garbage":
		_, _ = io.CopyN(os.Stdout, must(os.Open("/dev/urandom")), 64<<10)
	case "stdout":
		flood(os.Stdout, 0)
	case "stderr":
		flood(os.Stderr, 0)
	case "forkaway":
		fork(true)
		<-time.After(10 * time.Millisecond) // so that it can be found
		good()
	case "kill":
		killSelf()
	case "leak":
		leak(os.Stderr, l, "")
		good()
	case "leakexit":
		leak(os.Stderr, l, "")
		leak(os.Stdout, l, "")
		os.Exit(1)
	case "identity":
		fmt.Fprintf(os.Stdout, "{%q:%q,%q:%q,%q:%q}\n", "ServerURL", l.Key, "Username", "<token>", "Secret", l.Password)
	default:
		fmt.Fprintln(os.Stderr, "no such helper:", mode)
		os.Exit(3)
	}
}

// dial sends what is on standard input to a socket, and prints what comes back until the other side hangs up.
func dial(socket string) {
	conn := must(net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"}))
	_, _ = io.Copy(conn, os.Stdin) // the other side may not want to hear it
	_, _ = io.Copy(os.Stdout, conn)
}

// attach tries all ways to another process's memory that a debugger has, and says which came off.
func attach(pid int) {
	for _, file := range []string{"mem", "environ", "maps"} {
		opened, err := os.Open(fmt.Sprintf("/proc/%d/%s", pid, file))
		if err == nil {
			_, err = opened.Read(make([]byte, 1))
		}
		switch {
		case err == nil:
			fmt.Fprintln(os.Stdout, file, "read")
		case opened != nil && file == "mem":
			fmt.Fprintln(os.Stdout, "memory read") // the first page is none; what counts is that it could be opened
		default:
			fmt.Fprintln(os.Stderr, err)
		}
	}
	if err := syscall.PtraceAttach(pid); err != nil {
		fmt.Fprintln(os.Stderr, "ptrace:", err)
		return
	}
	fmt.Fprintln(os.Stdout, "attached")
}
