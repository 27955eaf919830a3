package control

import (
	"context"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/sdk/converter"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Progress returns what the running step of an operation last told of itself; nil if it has told nothing, or if no step runs
// now that is a task of its own.
func (c *Control) Progress(ctx context.Context, id string) (*api.Progress, error) {
	d, err := c.Temporal.DescribeWorkflowExecution(ctx, id, "")
	if err != nil {
		return nil, problem.Wrap(err, problem.Unavailable, "nobody can say how far operation %s is", id)
	}
	return progressOf(d.GetPendingActivities())
}

// progressOf returns what the activity that is running, or ran until a moment ago, has told with its last heartbeat.
func progressOf(pending []*workflowpb.PendingActivityInfo) (*api.Progress, error) {
	for _, a := range pending {
		if a.GetState() != enumspb.PENDING_ACTIVITY_STATE_STARTED || len(a.GetHeartbeatDetails().GetPayloads()) == 0 {
			continue
		}
		p, err := decodeProgress(a.GetHeartbeatDetails())
		if err != nil {
			return nil, problem.Wrap(err, problem.Internal, "what step %s told of itself cannot be read", a.GetActivityType().GetName())
		}
		if p.Step == "" {
			p.Step = a.GetActivityType().GetName()
		}
		return p, nil
	}
	return nil, nil
}

func decodeProgress(details *commonpb.Payloads) (*api.Progress, error) {
	var p api.Progress
	return &p, converter.GetDefaultDataConverter().FromPayloads(details, &p)
}
