// Package api holds the types that the server, the workers, the agents and the clients share: resources, the requests that
// change them and the operations that carry the changes out. It imports nothing of the house but api/problem.
package api

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/nextstack/nextstack/api/problem"
)

// Kind names a kind of resource, in the plural, as it stands in paths and keys.
type Kind string

// The kinds of resources.
const (
	KindProject       Kind = "projects"
	KindImage         Kind = "images"
	KindPool          Kind = "pools"
	KindVolume        Kind = "volumes"
	KindSnapshot      Kind = "snapshots"
	KindCheckpoint    Kind = "checkpoints"
	KindVPC           Kind = "vpcs"
	KindSubnet        Kind = "subnets"
	KindPort          Kind = "ports"
	KindSecurityGroup Kind = "security-groups"
	KindVM            Kind = "vms"
	KindVMGroup       Kind = "vm-groups"
	KindAgent         Kind = "agents"
	KindOperation     Kind = "operations"
	KindUser          Kind = "users"
	KindToken         Kind = "tokens"
)

// Singular returns the kind as people say it of one thing: "vm", "security group".
func (k Kind) Singular() string {
	return strings.ReplaceAll(strings.TrimSuffix(string(k), "s"), "-", " ")
}

// One names one resource of the kind with its article, like "a volume" and "an image".
func (k Kind) One() string {
	if s := k.Singular(); strings.ContainsRune("aeio", rune(s[0])) {
		return "an " + s
	}
	return "a " + k.Singular()
}

// ClusterWide reports whether resources of this kind belong to no project.
func (k Kind) ClusterWide() bool {
	switch k {
	case KindProject, KindPool, KindAgent, KindOperation, KindUser, KindToken:
		return true
	default:
		return false
	}
}

// DefaultProject is the project every installation starts with.
const DefaultProject = "default"

// Meta is what every resource has.
type Meta struct {
	ID        string            `json:"id" doc:"UUID, never reused"`
	Name      string            `json:"name" doc:"Unique among its kind in its project"`
	Project   string            `json:"project,omitempty" doc:"Empty for cluster-wide resources"`
	Labels    map[string]string `json:"labels,omitempty"`
	Created   time.Time         `json:"created"`
	Revision  int64             `json:"revision" doc:"Revision of the last change; the ETag"`
	Operation string            `json:"operation,omitempty" doc:"ID of the operation that holds the resource now"`
}

// GetMeta returns m; it makes every type that embeds Meta a Resource.
func (m *Meta) GetMeta() *Meta { return m }

// Resource is anything that is stored: it has a Meta and knows its kind.
type Resource interface {
	GetMeta() *Meta
	ResourceKind() Kind
}

// Ref points to a resource.
type Ref struct {
	Kind    Kind   `json:"kind"`
	Project string `json:"project,omitempty"`
	ID      string `json:"id"`
	Name    string `json:"name,omitempty"`
}

// RefTo returns the reference to r.
func RefTo(r Resource) Ref {
	m := r.GetMeta()
	return Ref{Kind: r.ResourceKind(), Project: m.Project, ID: m.ID, Name: m.Name}
}

// String returns "vm web (id)".
func (r Ref) String() string { return fmt.Sprintf("%s %s (%s)", r.Kind.Singular(), r.Name, r.ID) }

// NewID returns a new random resource ID. Workflows must not call it: ids are made when a request is accepted.
func NewID() string { return uuid.NewString() }

// Phase says where a resource is in its life.
type Phase string

// The phases. Running, stopped, paused, migrating and unknown are for VMs only; suspect, down and maintenance are for agents;
// deleted is for volumes and their snapshots; ready is the steady phase of all else.
const (
	PhaseCreating    Phase = "creating"
	PhaseReady       Phase = "ready"
	PhaseRunning     Phase = "running"
	PhaseStopped     Phase = "stopped"
	PhasePaused      Phase = "paused"
	PhaseDeleting    Phase = "deleting"
	PhaseUnavailable Phase = "unavailable"
	PhaseError       Phase = "error"
	PhaseMigrating   Phase = "migrating"
	PhaseUnknown     Phase = "unknown"     // its node is silent: nobody knows whether it runs
	PhaseSuspect     Phase = "suspect"     // silent for longer than a busy node would be
	PhaseDown        Phase = "down"        // proven to run nothing that may be started elsewhere
	PhaseMaintenance Phase = "maintenance" // alive; takes no new VMs because somebody said so
	PhaseDeleted     Phase = "deleted"     // in the recycle bin
)

// Abnormal reports whether somebody should look at a resource in this phase.
func (p Phase) Abnormal() bool {
	switch p {
	case PhaseError, PhaseUnavailable, PhaseUnknown, PhaseSuspect, PhaseDown:
		return true
	default:
		return false
	}
}

var (
	nameRE  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	labelRE = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)
)

// ValidName reports whether s can name a resource: 1-63 lower-case letters, digits and dashes, and not a UUID (a reference
// may be either, and must not be both).
func ValidName(s string) bool { return nameRE.MatchString(s) && !IsUUID(s) }

// IsUUID reports whether s is a UUID in its canonical form.
func IsUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	_, err := uuid.Parse(s)
	return err == nil
}

// CheckName adds a field error to v unless name can name a resource.
func CheckName(v *problem.Validation, path, name string) {
	v.Check(ValidName(name), path, name, "must be 1-63 characters of a-z, 0-9 and '-', begin and end with a letter or digit, and not be a UUID")
}

// CheckLabels adds a field error to v for every label that breaks the rules.
func CheckLabels(v *problem.Validation, path string, labels map[string]string) {
	v.Check(len(labels) <= 64, path, len(labels), "at most 64 labels")
	for k, val := range labels {
		v.Check(labelRE.MatchString(k), path+"."+k, k, "label keys are 1-63 characters of A-Z a-z 0-9 . _ / -, beginning and ending with a letter or digit")
		v.Check(len(val) <= 255 && printable(val), path+"."+k, val, "label values are at most 255 printable characters")
	}
}

func printable(s string) bool {
	for _, r := range s {
		if r < 0x20 || r == 0x7f {
			return false
		}
	}
	return true
}

// Byte units.
const (
	KiB int64 = 1 << 10
	MiB int64 = 1 << 20
	GiB int64 = 1 << 30
	TiB int64 = 1 << 40
)
