package agent

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
)

// handlers is a slog.Handler behind which another can be put at any time: the log follows the configuration.
type handlers struct {
	current *atomic.Pointer[slog.Handler]
	// with is what has been asked for since, and is asked of each that is put there.
	with []func(slog.Handler) slog.Handler
}

func newHandlers() *handlers {
	h := &handlers{current: new(atomic.Pointer[slog.Handler])}
	h.set(slog.DiscardHandler)
	return h
}

func (h *handlers) set(to slog.Handler) { h.current.Store(&to) }

func (h *handlers) handler() slog.Handler {
	now := *h.current.Load()
	for _, with := range h.with {
		now = with(now)
	}
	return now
}

// Enabled implements slog.Handler.
func (h *handlers) Enabled(ctx context.Context, level slog.Level) bool {
	return (*h.current.Load()).Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h *handlers) Handle(ctx context.Context, record slog.Record) error {
	return h.handler().Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (h *handlers) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.and(func(to slog.Handler) slog.Handler { return to.WithAttrs(attrs) })
}

// WithGroup implements slog.Handler.
func (h *handlers) WithGroup(name string) slog.Handler {
	return h.and(func(to slog.Handler) slog.Handler { return to.WithGroup(name) })
}

func (h *handlers) and(with func(slog.Handler) slog.Handler) *handlers {
	return &handlers{current: h.current, with: append(slices.Clip(h.with), with)}
}
