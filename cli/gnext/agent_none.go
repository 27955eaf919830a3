//go:build !cgo || !linux

package main

import (
	"context"

	"github.com/nextstack/nextstack/cli/command"
)

// agent and guardian are nil: this build has none.
var (
	agent    func(context.Context, command.AgentConfig) error
	guardian func(context.Context, command.GuardConfig) error
)
