package engine

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	sdklog "go.temporal.io/sdk/log"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// The embedded servers repeat a warning for every request that meets it. Per message and window the first
	// few are logged, which is enough to know, and the rest is dropped.
	logWindow = time.Minute
	logFirst  = 5
)

// noise are messages of the embedded servers that are wrong or known when embedded.
var noise = map[string]bool{
	// etcd: meant for clusters with many clients; here the port has none but etcdctl.
	"Running http and grpc server on single port. This is not recommended for production.": true,
	// etcd: about passwords of etcd users, of which there are none.
	"simple token is not cryptographically signed": true,
	// etcd: at the first start, before the first snapshot; it tries again every few seconds and then succeeds.
	"Failed to detect schema version":  true,
	"failed to update storage version": true,
	// Temporal: Nexus calls between namespaces over HTTP. There is one namespace.
	"HTTP API port has not been set. Nexus HTTP endpoints will not be available. To enable Nexus, follow these " +
		"instructions: https://github.com/temporalio/temporal/blob/main/docs/architecture/nexus.md#enabling-nexus.": true,
}

// newZap is the logger for an embedded server: warnings and worse go to log, until muted is set. What a server calls fatal panics
// instead of exiting, so that a failed start becomes an error of Start with a reason; later it still ends the
// process, which is what these servers rely on, with a stack to read.
func newZap(log *slog.Logger, component string, muted *atomic.Bool) *zap.Logger {
	core := zapcore.NewSamplerWithOptions(&slogCore{log: log.With("component", component), muted: muted}, logWindow, logFirst, 0)
	return zap.New(core, zap.WithFatalHook(panicHook{}))
}

type panicHook struct{}

// OnWrite panics with the fields, in which the servers put the cause.
func (panicHook) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	panic(fmt.Sprintf("%s %v", e.Message, attrs(fields)))
}

// slogCore writes zap entries to slog.
type slogCore struct {
	log *slog.Logger
	// muted is set when the server is told to stop: it then complains that its own parts leave it one by one.
	// What really goes wrong is in the error of Stop.
	muted *atomic.Bool
}

func (c *slogCore) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: slog.New(c.log.Handler().WithAttrs(attrs(fields))), muted: c.muted}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !noise[e.Message] && !c.muted.Load() {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	said := attrs(fields)
	if slices.ContainsFunc(said, early) {
		return nil
	}
	c.log.LogAttrs(context.Background(), level, e.Message, said...)
	return nil
}

// early reports whether a message is about a part of Temporal that asked another before it was up: they start all at once, and
// try again. That a frontend never comes up is for Start to say, which waits for it. A shard is of unknown status while it is acquired; why it
// is acquired later than at a start, Temporal says itself.
func early(a slog.Attr) bool {
	said := a.Value.String()
	return strings.Contains(said, "Frontend is not healthy yet") || strings.Contains(said, "shard status unknown")
}

func (c *slogCore) Sync() error { return nil }

// dropped are fields that only repeat what slog adds itself or that fill the log with stacks.
var dropped = map[string]bool{"logging-call-at": true, "stacktrace": true, "sys-stack-trace": true}

func attrs(fields []zapcore.Field) []slog.Attr {
	out := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		if dropped[f.Key] {
			continue
		}
		enc := zapcore.NewMapObjectEncoder()
		f.AddTo(enc)
		for k, v := range enc.Fields {
			out = append(out, slog.Any(k, v))
		}
	}
	return out
}

// newSDKLogger is the logger of the SDK client and of the workers made from it. Their info messages are one
// line per worker start and stop, so they stay at the level that the caller's logger has.
func newSDKLogger(log *slog.Logger) sdklog.Logger {
	return sdklog.NewStructuredLogger(log.With("component", "temporal-sdk"))
}
