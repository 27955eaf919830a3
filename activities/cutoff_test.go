package activities

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"github.com/nextstack/nextstack/api/problem"
)

func TestOnlyWhatWasWishedIsCancelled(t *testing.T) {
	interrupted := problem.New(problem.Cancelled, "interrupted")
	for name, c := range map[string]struct {
		cause error // that ended the step's context; nil: it goes on
		err   error
		want  problem.Kind
	}{
		"cancelled":              {temporal.NewCanceledError(), interrupted, problem.Cancelled},
		"heartbeats do not pass": {errors.New("connection refused"), interrupted, problem.Unavailable},
		"the worker ends":        {context.Canceled, interrupted, problem.Unavailable},
		"refused by itself":      {nil, interrupted, problem.Cancelled},
		"failed meanwhile":       {errors.New("connection refused"), problem.New(problem.NoCapacity, "the disk is full"), problem.NoCapacity},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if c.cause != nil {
				cancel(c.cause)
			}
			require.Equal(t, c.want, problem.KindOf(cutOff(ctx, c.err)))
		})
	}
	require.NoError(t, cutOff(t.Context(), nil))
}
