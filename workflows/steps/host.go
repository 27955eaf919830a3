package steps

import (
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// AgentChange is what is decided about a node.
type AgentChange = api.AgentChange

// AgentCordon says whether a node takes new VMs.
type AgentCordon struct {
	Agent    string `json:"agent"`
	Cordoned bool   `json:"cordoned"`
	Reason   string `json:"reason,omitempty"`
	// InPlaceOf is the reason of the cordon that is taken back. A node that the operation has lost to a recovery is changed
	// only if it is cordoned for that; empty: it is left alone.
	InPlaceOf string `json:"inPlaceOf,omitempty"`
}

// DrainPlan asks which VMs of a node would go where.
type DrainPlan struct {
	Agent string `json:"agent"`
	api.HostDrain
}

// MoveOrder asks for the operation that makes one move.
type MoveOrder struct {
	Parent  string        `json:"parent"` // operation ID
	Move    api.Move      `json:"move"`
	Request api.VMMigrate `json:"request"` // not used for restarts
}

// Watched is operations that somebody waits for.
type Watched struct {
	Operations []string   `json:"operations"`
	Moves      []api.Move `json:"moves"` // to be told as progress meanwhile
}

// OperationEnd is how an operation ended, or that it has not.
type OperationEnd struct {
	State api.OperationState `json:"state"`
	Error *problem.Problem   `json:"error,omitempty"`
}

// Judgement asks whether a silent node may be taken for dead.
type Judgement struct {
	Agent     string     `json:"agent"`
	Fenced    *api.Proof `json:"fenced,omitempty"`    // its fence device says that it is off
	Confirmed string     `json:"confirmed,omitempty"` // who said, having looked, that it is off
}

// Verdict is the answer: one of its fields.
type Verdict struct {
	Alive  bool          `json:"alive,omitempty"`  // it reports again
	Proof  *api.Proof    `json:"proof,omitempty"`  // it is down from here on, and gets no lease
	Device bool          `json:"device,omitempty"` // it has a fence device that could tell
	Wait   time.Duration `json:"wait,omitempty"`   // until its lease is over; ask again then. 0: there is nothing to wait for
	Reason string        `json:"reason,omitempty"` // why there is no proof
}

// NodeRef names a node.
type NodeRef struct {
	Agent string `json:"agent"`
}

// Steps on hosts.
var (
	// ApplyAgent writes what is decided about a node. It is its own undo, with what was before.
	ApplyAgent = Step[AgentChange, Nothing]{Name: "state.apply_agent", Where: Local, Timeout: 10 * time.Second}
	// CordonAgent says whether the node takes new VMs. It is its own undo.
	CordonAgent = Step[AgentCordon, Nothing]{Name: "state.cordon_agent", Where: Local, Timeout: 10 * time.Second}
	// ForgetAgent removes the record of a node with its credential.
	ForgetAgent = Step[NodeRef, Nothing]{Name: "state.forget_agent", Where: Local, Timeout: 10 * time.Second}
	// PlanDrain says which VMs of a node would go where. Reads only.
	PlanDrain = Step[DrainPlan, api.MovePlan]{Name: "state.plan_drain", Where: Local, Timeout: 10 * time.Second}
	// PlanBalance says which moves would even out the nodes. Reads only.
	PlanBalance = Step[api.HostBalance, api.MovePlan]{Name: "state.plan_balance", Where: Local, Timeout: 10 * time.Second}
	// PlanRecovery says which VMs of a dead node are restarted elsewhere, and why the others are not, which it writes down.
	PlanRecovery = Step[NodeRef, api.MovePlan]{Name: "state.plan_recovery", Where: Local, Timeout: 10 * time.Second}
	// OrderMove accepts the operation that makes a move, and returns its ID. Ordering it twice is ordering it once.
	OrderMove = Step[MoveOrder, string]{Name: "state.order_move", Where: Local, Timeout: 10 * time.Second}
	// AwaitOperations waits until at least one of them has ended, or half a minute, and says how all of them are.
	AwaitOperations = Step[Watched, []OperationEnd]{Name: "state.await_operations", Where: Control, Timeout: time.Minute, Interruptible: true}
	// JudgeNode decides, in one transaction with the node's reports, whether it may be taken for dead.
	JudgeNode = Step[Judgement, Verdict]{Name: "state.judge_node", Where: Local, Timeout: 10 * time.Second}
	// FenceNode powers a node off by its fence device, and returns when that says that it is off.
	FenceNode = Step[NodeRef, api.Proof]{Name: "fence.power_off", Where: Control, Timeout: 2 * time.Minute}
	// LookAtAgent says what is known of a node.
	LookAtAgent = Step[NodeRef, api.AgentStatus]{Name: "state.look_at_agent", Where: Local, Timeout: 10 * time.Second}
)
