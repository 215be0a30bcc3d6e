package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/credential-broker/credential-broker/broker/config"
)

// newLog makes the log that the configuration asks for. It always goes to stderr and, if set, to the file. As the kubelet throws a plugin's stderr away when it
// exits with 0, toJournal sends it to the system's journal too, where there is one. A log that cannot be opened is said on stderr and stops nobody's pull.
func newLog(cfg config.Log, stderr io.Writer, toJournal bool) (log *slog.Logger, closeLog func()) {
	return newLogFrom(slog.LevelDebug, cfg, stderr, toJournal)
}

// newLogFrom is newLog for a standard error that people read while they do something else: of the lines, those below least go to the file and the journal alone.
func newLogFrom(least slog.Level, cfg config.Log, stderr io.Writer, toJournal bool) (log *slog.Logger, closeLog func()) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		level = slog.LevelInfo
	}
	handler := func(w io.Writer, level slog.Level) slog.Handler {
		options := &slog.HandlerOptions{Level: level}
		if cfg.Format == "json" {
			return slog.NewJSONHandler(w, options)
		}
		return slog.NewTextHandler(w, options)
	}
	handlers := fanOut{handler(stderr, max(level, least))}
	closeLog = func() {}
	if cfg.File != "" {
		file, err := openLog(cfg.File)
		if err != nil {
			slog.New(handlers).Warn("the log file cannot be opened", "reason", err.Error())
		} else {
			rotated := &rotatedFile{path: cfg.File, file: file, looked: time.Now()}
			handlers = append(handlers, handler(rotated, level))
			closeLog = rotated.close
		}
	}
	if toJournal && journal.Enabled() {
		if own, _ := journal.StderrIsJournalStream(); !own {
			handlers = append(handlers, journalHandler{level: level, send: journal.Send, patience: journalPatience, stuck: new(atomic.Int64)})
		}
	}
	if len(handlers) == 1 {
		return slog.New(handlers[0]), closeLog
	}
	return slog.New(handlers), closeLog
}

// openLog opens the log file. A pipe is refused: opening it, or writing to it, would wait for whoever reads it.
func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Mode()&(os.ModeNamedPipe|os.ModeSocket) != 0 {
		return nil, fmt.Errorf("%s: it is a pipe or a socket, which could hold up a pull: name a file", path)
	}
	return os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
}

// rotatedFile is a log file that somebody may move away, to begin another one: who lives for long writes to that then.
type rotatedFile struct {
	path   string
	mu     sync.Mutex
	file   *os.File
	looked time.Time
}

// rotationInterval is how long a log file that was moved away may be written to.
const rotationInterval = time.Second

// Write implements io.Writer.
func (r *rotatedFile) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.looked) >= rotationInterval {
		r.looked = now
		r.follow()
	}
	return r.file.Write(line)
}

// follow opens the file that is at the path now, if it is another one. What cannot be opened leaves the one that is open.
func (r *rotatedFile) follow() {
	there, err := os.Stat(r.path)
	if err == nil {
		if own, err := r.file.Stat(); err == nil && os.SameFile(there, own) {
			return
		}
	}
	file, err := openLog(r.path)
	if err != nil {
		return
	}
	_ = r.file.Close()
	r.file = file
}

func (r *rotatedFile) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.file.Close()
}

// fanOut hands each record to several handlers.
type fanOut []slog.Handler

func (f fanOut) Enabled(ctx context.Context, level slog.Level) bool {
	for _, h := range f {
		if h.Enabled(ctx, level) {
			return true
		}
	}
	return false
}

func (f fanOut) Handle(ctx context.Context, record slog.Record) error {
	var errs []error
	for _, h := range f {
		if h.Enabled(ctx, record.Level) {
			errs = append(errs, h.Handle(ctx, record.Clone()))
		}
	}
	return errors.Join(errs...)
}

func (f fanOut) WithAttrs(attrs []slog.Attr) slog.Handler {
	return f.each(func(h slog.Handler) slog.Handler { return h.WithAttrs(attrs) })
}

func (f fanOut) WithGroup(name string) slog.Handler {
	return f.each(func(h slog.Handler) slog.Handler { return h.WithGroup(name) })
}

func (f fanOut) each(with func(slog.Handler) slog.Handler) fanOut {
	made := make(fanOut, len(f))
	for i, h := range f {
		made[i] = with(h)
	}
	return made
}

// journalHandler sends records to systemd's journal: the line that stands on stderr, without time and level, which the journal keeps itself.
type journalHandler struct {
	level slog.Level
	attrs []slog.Attr
	send  func(message string, priority journal.Priority, vars map[string]string) error
	// patience is how long one record may take, and stuck until when none is sent because one took longer (Unix nanoseconds).
	patience time.Duration
	stuck    *atomic.Int64
}

// journalPatience bounds what a journal that nobody empties can cost a pull. A record takes microseconds.
const journalPatience = 250 * time.Millisecond

// journalPause is for how long a journal that did not take a record is left alone.
const journalPause = time.Minute

func (j journalHandler) Enabled(_ context.Context, level slog.Level) bool { return level >= j.level }

func (j journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	j.attrs = append(slices.Clip(j.attrs), attrs...)
	return j
}

func (j journalHandler) WithGroup(string) slog.Handler { return j } // the broker makes none

func (j journalHandler) Handle(ctx context.Context, record slog.Record) error {
	if time.Now().UnixNano() < j.stuck.Load() {
		return nil
	}
	var line bytes.Buffer
	text := slog.NewTextHandler(&line, &slog.HandlerOptions{Level: j.level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return a
	}}).WithAttrs(j.attrs)
	if err := text.Handle(ctx, record); err != nil {
		return err
	}
	priority := journal.PriInfo
	switch {
	case record.Level >= slog.LevelError:
		priority = journal.PriErr
	case record.Level >= slog.LevelWarn:
		priority = journal.PriWarning
	case record.Level < slog.LevelInfo:
		priority = journal.PriDebug
	}
	// The library's socket has no deadline. What is given up ends with the process.
	sent := make(chan error, 1)
	go func() {
		sent <- j.send(strings.TrimSuffix(line.String(), "\n"), priority, map[string]string{"SYSLOG_IDENTIFIER": "credential-broker"})
	}()
	timer := time.NewTimer(j.patience)
	defer timer.Stop()
	select {
	case err := <-sent:
		return err
	case <-timer.C:
		j.stuck.Store(time.Now().Add(journalPause).UnixNano())
		return errors.New("the journal does not take the record")
	}
}
