//go:build !cgo || !linux

package main

import (
	"context"

	"github.com/nextstack/nextstack/cli/command"
)

// agent is nil: this build has none.
var agent func(context.Context, command.AgentConfig) error
