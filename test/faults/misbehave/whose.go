package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

// whose is a backend that says in each password what its answer depends on, so that an answer that reaches somebody else is seen. Its environment says the rest:
//
//	WHOSE_GENERATION  is in each password; a configuration has one of its own
//	WHOSE_KEYS        the auth keys of an answer, between spaces; default: the image
//	WHOSE_SCOPE       "registry": the answer is that of the registry, else of the image
//	WHOSE_SEES        "account": the answer depends on the token's account and not on the token
//	WHOSE_LIFE        when the credentials expire; default: never, and then the answer may be kept for an hour; "0": it may not be kept at all
//	WHOSE_TAKES       how long each answer takes
//	WHOSE_WAITS       a file; there is no answer before it is gone
//	WHOSE_CALLS       a file to which a line is added for each call
//	WHOSE_OUTAGE      a file; while it exists, there is no answer
//	WHOSE_ALIVE       a directory in which each process has a locked file for as long as it lives; WHOSE_MOST is then where each, when it starts, adds a line with how many there are
func whose() {
	if dir := os.Getenv("WHOSE_ALIVE"); dir != "" {
		census(dir, os.Getenv("WHOSE_MOST"))
	}
	generation, binary := os.Getenv("WHOSE_GENERATION"), stamp()
	gets(func(r *backendv1.GetCredentialsRequest) (*backendv1.GetCredentialsResponse, error) {
		if file := os.Getenv("WHOSE_CALLS"); file != "" {
			appendLine(file, r.GetImage())
		}
		if takes := os.Getenv("WHOSE_TAKES"); takes != "" {
			<-time.After(must(time.ParseDuration(takes)))
		}
		for file := os.Getenv("WHOSE_WAITS"); file != ""; {
			if _, err := os.Stat(file); err != nil {
				break
			}
			<-time.After(10 * time.Millisecond)
		}
		if file := os.Getenv("WHOSE_OUTAGE"); file != "" {
			if _, err := os.Stat(file); err == nil {
				return nil, errors.New("the source is down")
			}
		}
		of := r.GetImage()
		response := answer(login{})
		response.Credentials = nil
		response.Scope = backendv1.Scope_SCOPE_IMAGE
		if os.Getenv("WHOSE_SCOPE") == "registry" {
			response.Scope = backendv1.Scope_SCOPE_REGISTRY
			of, _, _ = strings.Cut(of, "/")
		}
		keys := strings.Fields(os.Getenv("WHOSE_KEYS"))
		if len(keys) == 0 {
			keys = []string{of}
		}
		var expires *timestamppb.Timestamp
		switch life := os.Getenv("WHOSE_LIFE"); life {
		case "":
		case "0":
			response.CacheDuration = durationpb.New(0)
		default:
			expires, response.CacheDuration = timestamppb.New(time.Now().Add(must(time.ParseDuration(life)))), nil
		}
		for _, key := range keys {
			response.Credentials = append(response.Credentials, &backendv1.Credential{
				Key: key, Username: "somebody", Password: whosePassword(generation+binary, of, r.GetServiceAccountToken(), os.Getenv("WHOSE_SEES") == "account"), Expires: expires,
			})
		}
		return response, nil
	})
}

// stamp is what a test has appended to this program's file, to tell it from another: up to eight characters after a zero byte.
func stamp() string {
	self := must(os.Open("/proc/self/exe"))
	end := make([]byte, 9)
	_ = must(self.ReadAt(end, must(self.Seek(-int64(len(end)), io.SeekEnd))))
	_ = self.Close()
	if end[0] != 0 || end[1] != '@' {
		return ""
	}
	return strings.TrimRight(string(end[1:]), " ")
}

// whosePassword is generation, image or registry, and for whom it is: a token's digest, an account, or nobody.
func whosePassword(generation, of, token string, byAccount bool) string {
	who := "node"
	switch {
	case token == "":
	case byAccount:
		who = subject(token)
	default:
		sum := sha256.Sum256([]byte(token))
		who = hex.EncodeToString(sum[:16])
	}
	return strings.Join([]string{generation, of, who}, "|")
}

// subject of a token, which names the account.
func subject(token string) string {
	var claims struct {
		Subject string `json:"sub"`
	}
	parts := strings.Split(token, ".")
	must(0, json.Unmarshal(must(base64.RawURLEncoding.DecodeString(parts[1])), &claims))
	return claims.Subject
}

// census makes this process count for as long as it lives, and notes how many do.
func census(dir, most string) {
	mine := must(os.OpenFile(filepath.Join(dir, strconv.Itoa(os.Getpid())), os.O_CREATE|os.O_RDWR, 0o600))
	must(0, syscall.Flock(int(mine.Fd()), syscall.LOCK_EX))
	alive := 1
	for _, entry := range must(os.ReadDir(dir)) {
		file, err := os.Open(filepath.Join(dir, entry.Name()))
		if err != nil || entry.Name() == strconv.Itoa(os.Getpid()) {
			continue
		}
		if syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) != nil {
			alive++
		}
		_ = file.Close()
	}
	appendLine(most, strconv.Itoa(alive))
	kept = mine
}

// kept stays open until the process ends.
var kept *os.File //nolint:unused // what it refers to is not closed by the garbage collector

// appendLine adds a line, whole, whoever else does so at the same time.
func appendLine(path, line string) {
	file := must(os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600))
	_ = must(fmt.Fprintln(file, line))
	_ = file.Close()
}
