package api

import (
	"encoding/json"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// OperationState says where an operation is.
type OperationState string

// The states. An operation ends as succeeded, failed or cancelled, and in the latter two everything it did is undone.
const (
	OpAccepted  OperationState = "accepted"  // written down; it will run, whatever dies
	OpRunning   OperationState = "running"   // going forward
	OpUndoing   OperationState = "undoing"   // going back
	OpStuck     OperationState = "stuck"     // cannot go on or back by itself for now; it keeps trying, and `op resume` hurries it
	OpSucceeded OperationState = "succeeded" // done
	OpFailed    OperationState = "failed"    // undone after an error
	OpCancelled OperationState = "cancelled" // undone because somebody asked
)

// Ended reports whether nothing more will happen.
func (s OperationState) Ended() bool {
	return s == OpSucceeded || s == OpFailed || s == OpCancelled
}

// Operation kinds. Each has one workflow of the same name.
const (
	OpVMCreate       = "vm.create"
	OpVMDelete       = "vm.delete"
	OpVMStart        = "vm.start"
	OpVMStop         = "vm.stop"
	OpVMReboot       = "vm.reboot"
	OpVMUpdate       = "vm.update"
	OpVMMigrate      = "vm.migrate"
	OpVMRecover      = "vm.recover" // start a VM elsewhere whose node is proven dead
	OpGroupCreate    = "group.create"
	OpGroupDelete    = "group.delete"
	OpHostUpdate     = "host.update"
	OpHostDrain      = "host.drain"
	OpHostBalance    = "host.balance"
	OpHostRecover    = "host.recover"
	OpHostDelete     = "host.delete"
	OpImageImport    = "image.import"
	OpImageCapture   = "image.capture" // of a volume
	OpImageDelete    = "image.delete"
	OpImageExport    = "image.export"
	OpImageUpdate    = "image.update"
	OpPoolAdd        = "pool.add"
	OpPoolUpdate     = "pool.update"
	OpPoolDelete     = "pool.delete"
	OpVolumeCreate   = "volume.create"
	OpVolumeUpdate   = "volume.update"
	OpVolumeAttach   = "volume.attach"
	OpVolumeDetach   = "volume.detach"
	OpVolumeResize   = "volume.resize"
	OpVolumeFlatten  = "volume.flatten" // make it independent of its image
	OpVolumeMigrate  = "volume.migrate" // into another pool
	OpVolumeExport   = "volume.export"
	OpVolumeDelete   = "volume.delete" // into the recycle bin
	OpVolumeRestore  = "volume.restore"
	OpVolumePurge    = "volume.purge" // for good
	OpSnapshotCreate = "snapshot.create"
	OpSnapshotDelete = "snapshot.delete"
	OpSnapshotRevert = "snapshot.revert"
	OpVPCCreate      = "vpc.create"
	OpVPCUpdate      = "vpc.update"
	OpVPCDelete      = "vpc.delete"
	OpSubnetCreate   = "subnet.create"
	OpSubnetUpdate   = "subnet.update"
	OpSubnetDelete   = "subnet.delete"
	OpPortCreate     = "port.create"
	OpPortUpdate     = "port.update"
	OpPortDelete     = "port.delete"
	OpSGCreate       = "sg.create"
	OpSGUpdate       = "sg.update"
	OpSGDelete       = "sg.delete"
	OpAudit          = "audit"
	OpNoop           = "noop"

	OpCheckpointCreate = "checkpoint.create"
	OpCheckpointDelete = "checkpoint.delete"
	OpCheckpointRevert = "checkpoint.revert"
)

// Operation is one accepted change and what became of it. It is kept after it ended.
type Operation struct {
	Meta
	Kind      string           `json:"kind" doc:"Such as vm.create"`
	State     OperationState   `json:"state"`
	Target    Ref              `json:"target" doc:"What it changes"`
	Warnings  []string         `json:"warnings,omitempty" doc:"What whoever asked for it should know, although it was accepted"`
	Requester string           `json:"requester" doc:"User or agent that asked for it"`
	Steps     []StepRecord     `json:"steps,omitempty" doc:"Its whole step table, with what happened so far"`
	Error     *problem.Problem `json:"error,omitempty" doc:"Why it was undone, or why it is stuck"`
	Result    json.RawMessage  `json:"result,omitempty" doc:"What it found, for operations that look rather than change"`
	Started   time.Time        `json:"started,omitzero"`
	Ended     time.Time        `json:"ended,omitzero"`
	RetryOf   string           `json:"retryOf,omitempty" doc:"ID of the failed operation that this one repeats"`
	Parent    string           `json:"parent,omitempty" doc:"ID of the operation that asked for this one"`
	Progress  *Progress        `json:"progress,omitempty" doc:"What its running step last told of itself; not kept"`
	URL       string           `json:"url,omitempty" doc:"Its page in the Temporal UI"`

	Request json.RawMessage `json:"request,omitempty" doc:"What was asked for, without secrets"`

	// What follows is for the control plane alone; the server never shows it.

	Plan        *OperationPlan  `json:"plan,omitempty"`
	RequestHash string          `json:"requestHash,omitempty"` // of the request under its Idempotency-Key
	Checkpoint  json.RawMessage `json:"checkpoint,omitempty"`  // the workflow's variables, for undoing without its history
}

// ResourceKind implements Resource.
func (*Operation) ResourceKind() Kind { return KindOperation }

// Public returns a copy without what is for the control plane alone.
func (o *Operation) Public() *Operation {
	c := *o
	c.Plan, c.RequestHash, c.Checkpoint = nil, "", nil
	return &c
}

// StepState says where a step is.
type StepState string

// The states of a step.
const (
	StepPending StepState = "pending"
	StepRunning StepState = "running"
	StepDone    StepState = "done"
	StepFailed  StepState = "failed"
	StepUndoing StepState = "undoing"
	StepUndone  StepState = "undone"
)

// StepRecord is what happened to one step.
type StepRecord struct {
	Name     string           `json:"name"`
	Where    string           `json:"where" doc:"control, or the name of the agent"`
	State    StepState        `json:"state"`
	Attempts int              `json:"attempts,omitempty"`
	Started  time.Time        `json:"started,omitzero"`
	Ended    time.Time        `json:"ended,omitzero"`
	Error    *problem.Problem `json:"error,omitempty" doc:"Of the last attempt that failed"`
	Detail   json.RawMessage  `json:"detail,omitempty" doc:"What the step decided or found: a placement decision, the figures of a move, the proof that a node is off"`
}

// Progress is what a running step tells of itself.
type Progress struct {
	Step    string        `json:"step,omitempty"`
	Text    string        `json:"text,omitempty" doc:"For people"`
	Done    int64         `json:"done,omitempty" doc:"Bytes"`
	Total   int64         `json:"total,omitempty" doc:"Bytes"`
	Rate    int64         `json:"rate,omitempty" doc:"Bytes per second"`
	Migrate *MoveProgress `json:"migrate,omitempty"`
	Moves   []Move        `json:"moves,omitempty" doc:"Of a drain, a balance or a recovery"`
}

// MoveProgress is how far the move of a running VM is.
type MoveProgress struct {
	Remaining        int64 `json:"remaining" doc:"Bytes of memory and disk still to be sent"`
	Dirty            int64 `json:"dirty" doc:"Bytes of memory that the guest changes per second"`
	Iteration        int   `json:"iteration" doc:"How often its memory has been gone through"`
	ExpectedDowntime int   `json:"expectedDowntime" doc:"Milliseconds"`
	Throttle         int   `json:"throttle,omitempty" doc:"Percent by which its processors are slowed down"`
	PostCopy         bool  `json:"postCopy,omitempty" doc:"It runs at the target already"`
}

// Project holds resources together.
type Project struct {
	Meta
	Spec ProjectSpec `json:"spec"`
}

// ResourceKind implements Resource.
func (*Project) ResourceKind() Kind { return KindProject }

// ProjectSpec holds the project's quota. Zero means no limit.
type ProjectSpec struct {
	VMs    int   `json:"vms,omitempty"`
	VCPUs  int   `json:"vcpus,omitempty"`
	Memory int64 `json:"memory,omitempty" doc:"Bytes"`
	Disk   int64 `json:"disk,omitempty" doc:"Bytes"`
}

// User is somebody who may log in.
type User struct {
	Meta
	PasswordHash string `json:"passwordHash"` // argon2id, PHC string
	Role         string `json:"role"`
}

// ResourceKind implements Resource.
func (*User) ResourceKind() Kind { return KindUser }

// Token is a bearer token at rest: its ID is the SHA-256 of the secret, so that the store never holds one that works.
type Token struct {
	Meta
	Subject string    `json:"subject"` // user name or agent ID
	Role    string    `json:"role"`
	Expires time.Time `json:"expires,omitzero"` // zero: never (agents)
}

// ResourceKind implements Resource.
func (*Token) ResourceKind() Kind { return KindToken }

// Login is the request for a token.
type Login struct {
	User     string `json:"user"`
	Password string `json:"password"`
	Hours    int    `json:"hours,omitempty" doc:"How long the token is valid; default 12, at most 720"`
}

// LoggedIn is the answer to a login.
type LoggedIn struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// Finding is one thing that exists on one side only.
type Finding struct {
	Side     string `json:"side" doc:"Where it is or is missing: store, libvirt, ovn, ovs, pool"`
	Kind     string `json:"kind" doc:"domain, volume, backing, seed, switch, router, port, acl, claim, lock, quota, operation..."`
	ID       string `json:"id"`
	Node     string `json:"node,omitempty" doc:"Agent ID"`
	Path     string `json:"path,omitempty" doc:"Of a file"`
	Extra    bool   `json:"extra" doc:"True: it exists and nobody owns it. False: it is missing"`
	Problem  string `json:"problem" doc:"What is wrong"`
	Fix      string `json:"fix" doc:"What a repair does"`
	Repaired bool   `json:"repaired,omitempty"`
}

// AuditRequest asks for an audit.
type AuditRequest struct {
	Repair bool `json:"repair,omitempty" doc:"Also remove what nobody owns"`
}

// AuditReport is the result of an audit. No findings means that every side agrees.
type AuditReport struct {
	Findings []Finding      `json:"findings"`
	Checked  map[string]int `json:"checked" doc:"How many things of each kind were looked at"`
	Skipped  []string       `json:"skipped,omitempty" doc:"Nodes that could not be asked, and why; a report with one is not clean"`
}

// Clean reports whether everything was looked at and nothing is wrong.
func (r *AuditReport) Clean() bool {
	if len(r.Skipped) > 0 {
		return false
	}
	for _, f := range r.Findings {
		if !f.Repaired {
			return false
		}
	}
	return true
}
