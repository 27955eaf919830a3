package control

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// described answers DescribeWorkflowExecution, and nothing else.
type described struct {
	client.Client
	pending []*workflowpb.PendingActivityInfo
	err     error
}

func (d described) DescribeWorkflowExecution(context.Context, string, string) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	return &workflowservice.DescribeWorkflowExecutionResponse{PendingActivities: d.pending}, d.err
}

func activity(t *testing.T, name string, state enumspb.PendingActivityState, told ...any) *workflowpb.PendingActivityInfo {
	t.Helper()
	a := &workflowpb.PendingActivityInfo{ActivityType: &commonpb.ActivityType{Name: name}, State: state}
	if len(told) > 0 {
		var err error
		a.HeartbeatDetails, err = converter.GetDefaultDataConverter().ToPayloads(told...)
		require.NoError(t, err)
	}
	return a
}

func TestProgressIsWhatTheRunningStepLastTold(t *testing.T) {
	const started, scheduled = enumspb.PENDING_ACTIVITY_STATE_STARTED, enumspb.PENDING_ACTIVITY_STATE_SCHEDULED
	told := api.Progress{Done: 5, Total: 10, Migrate: &api.MoveProgress{Remaining: 5, Iteration: 2}}
	ask := func(pending ...*workflowpb.PendingActivityInfo) (*api.Progress, error) {
		c := &Control{Config: Config{Temporal: described{pending: pending}}}
		return c.Progress(t.Context(), "op")
	}
	got, err := ask(activity(t, "storage.pull_disk", started), activity(t, "compute.settle", scheduled, told), activity(t, "compute.migrate", started, told))
	require.NoError(t, err)
	want := told
	want.Step = "compute.migrate"
	require.Equal(t, &want, got)

	own := told
	own.Step = "its own word"
	got, err = ask(activity(t, "compute.migrate", started, own))
	require.NoError(t, err)
	require.Equal(t, &own, got)

	got, err = ask()
	require.NoError(t, err)
	require.Nil(t, got)
	got, err = ask(activity(t, "compute.start", started))
	require.NoError(t, err)
	require.Nil(t, got, "alive, and with nothing to tell")

	_, err = ask(activity(t, "compute.migrate", started, "half way"))
	require.True(t, problem.Is(err, problem.Internal), "%v", err)
	c := &Control{Config: Config{Temporal: described{err: errors.New("away")}}}
	_, err = c.Progress(t.Context(), "op")
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
}
