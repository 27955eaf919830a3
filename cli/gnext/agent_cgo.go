//go:build cgo && linux

package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/cli/command"
	"github.com/nextstack/nextstack/cli/trim"
	"github.com/nextstack/nextstack/workers/node"
	"github.com/nextstack/nextstack/workers/node/guard"
)

// settleTime is how long the start of an agent takes, generously: joining, connecting, the first report.
const settleTime = 15 * time.Second

// agent runs the agent of this node.
func agent(ctx context.Context, c command.AgentConfig) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return problem.Wrap(err, problem.Invalid, "%q is not a log level", c.LogLevel)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	started := time.AfterFunc(settleTime, func() {
		if err := trim.Code(); err != nil {
			log.Debug("the memory of the start cannot be given back", "error", err)
		}
	})
	defer started.Stop()
	return node.Run(ctx, node.Config{
		Server: c.Server, JoinToken: c.JoinToken, JoinTokenFile: c.JoinTokenFile, DataDir: c.DataDir, Name: c.Name,
		LibvirtURI: c.Libvirt, OVS: c.OVS, Accel: c.Accel, LiveTCG: c.LiveTCG, Version: c.Version,
		PeerLibvirt: c.PeerLibvirt, PeerAddress: c.PeerAddress, PeerListen: c.PeerListen,
		Guard: c.Guard, Hook: activities.FaultPoints(),
		Log: log,
	})
}

// guardian guards this node until it is replaced. It does not end when it is asked to in passing, as by the end of a session: who
// has it end says so to itself.
func guardian(ctx context.Context, c command.GuardConfig) error {
	if c.Stop {
		return guard.Stop(ctx, c.DataDir)
	}
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	log := guard.NewLog(os.Stderr)
	// Before it locks its memory: most of what it has was touched by the start of this large program, and is for others.
	if err := trim.Code(); err != nil {
		log.Debug("the memory of the start cannot be given back", "error", err)
	}
	debug.FreeOSMemory()
	return guard.Run(context.WithoutCancel(ctx), guard.Config{DataDir: c.DataDir, RunDir: c.LibvirtRun, Build: guard.Build(), Log: log})
}
