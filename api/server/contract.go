package server

import (
	"context"
	"log/slog"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/accounts"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/fleet"
	"github.com/nextstack/nextstack/api/store"
)

// Admission turns requests into accepted operations; *admission.Admission does. There is one method for each write of the
// API and nothing else, so that a write cannot be added in one place only.
type Admission interface {
	CreateVM(ctx context.Context, h auth.Handle, o admission.Options, req api.VMCreate) (*api.Operation, error)
	DeleteVMWith(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VMDelete) (*api.Operation, error)
	StartVM(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)
	StopVM(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VMStop) (*api.Operation, error)
	RebootVM(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VMStop) (*api.Operation, error)
	UpdateVM(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VMUpdate) (*api.Operation, error)
	MigrateVM(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VMMigrate) (*api.Operation, error)
	CreateGroup(ctx context.Context, h auth.Handle, o admission.Options, req api.VMGroupCreate) (*api.Operation, error)
	DeleteGroup(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)

	UpdateHost(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.AgentUpdate) (*api.Operation, error)
	DrainHost(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.HostDrain) (*api.Operation, error)
	BalanceHosts(ctx context.Context, h auth.Handle, o admission.Options, req api.HostBalance) (*api.Operation, error)
	RecoverHost(ctx context.Context, h auth.Handle, o admission.Options, ref, confirmedBy string) (*api.Operation, error)
	DeleteHost(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)

	CreateImage(ctx context.Context, h auth.Handle, o admission.Options, req api.ImageCreate) (*api.Operation, error)
	UpdateImage(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.ImageUpdate) (*api.Operation, error)
	ExportImage(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.ImageExport) (*api.Operation, error)
	DeleteImage(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)
	CreatePool(ctx context.Context, h auth.Handle, o admission.Options, req api.PoolCreate) (*api.Operation, error)
	UpdatePool(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.PoolUpdate) (*api.Operation, error)
	DeletePool(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)

	CreateVolume(ctx context.Context, h auth.Handle, o admission.Options, req api.VolumeCreate) (*api.Operation, error)
	UpdateVolume(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VolumeUpdate) (*api.Operation, error)
	AttachVolume(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VolumeAttach) (*api.Operation, error)
	DetachVolume(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VolumeDetach) (*api.Operation, error)
	FlattenVolume(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)
	ExportVolume(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VolumeExport) (*api.Operation, error)
	MigrateVolume(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VolumeMigrate) (*api.Operation, error)
	ResizeVolume(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VolumeResize) (*api.Operation, error)
	DeleteVolume(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VolumeDelete) (*api.Operation, error)
	RestoreVolume(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)
	CreateSnapshot(ctx context.Context, h auth.Handle, o admission.Options, req api.SnapshotCreate) (*api.Operation, error)
	DeleteSnapshot(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)
	RevertSnapshot(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.SnapshotRevert) (*api.Operation, error)

	CreateCheckpoint(ctx context.Context, h auth.Handle, o admission.Options, req api.CheckpointCreate) (*api.Operation, error)
	DeleteCheckpoint(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)
	RevertCheckpoint(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)

	CreateVPC(ctx context.Context, h auth.Handle, o admission.Options, req api.VPCCreate) (*api.Operation, error)
	UpdateVPC(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.VPCUpdate) (*api.Operation, error)
	DeleteVPC(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)
	CreateSubnet(ctx context.Context, h auth.Handle, o admission.Options, req api.SubnetCreate) (*api.Operation, error)
	UpdateSubnet(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.SubnetUpdate) (*api.Operation, error)
	DeleteSubnet(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)
	CreatePort(ctx context.Context, h auth.Handle, o admission.Options, req api.PortCreate) (*api.Operation, error)
	UpdatePort(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.PortUpdate) (*api.Operation, error)
	DeletePort(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)
	CreateSecurityGroup(ctx context.Context, h auth.Handle, o admission.Options, req api.SecurityGroupCreate) (*api.Operation, error)
	UpdateSecurityGroup(ctx context.Context, h auth.Handle, o admission.Options, ref string, req api.SecurityGroupUpdate) (*api.Operation, error)
	DeleteSecurityGroup(ctx context.Context, h auth.Handle, o admission.Options, ref string) (*api.Operation, error)

	Audit(ctx context.Context, h auth.Handle, o admission.Options, req api.AuditRequest) (*api.Operation, error)
	Noop(ctx context.Context, h auth.Handle, o admission.Options) (*api.Operation, error)
	Retry(ctx context.Context, h auth.Handle, o admission.Options, op string) (*api.Operation, error)
}

var _ Admission = (*admission.Admission)(nil)

// Engine carries operations out.
type Engine interface {
	// Cancel asks an operation to undo what it has done.
	Cancel(ctx context.Context, op string) error
	// Resume hurries an operation that is stuck.
	Resume(ctx context.Context, op string) error
	// Progress returns what the running step of an operation last told of itself; nil: nothing.
	Progress(ctx context.Context, op string) (*api.Progress, error)
	// URL returns the address of an operation's page, or "".
	URL(op string) string
}

// Options configures a Server.
type Options struct {
	KV        store.KV
	Cache     *store.Cache // of all that is below store.Root, running
	Admission Admission
	Engine    Engine
	Planner   Planner // nil: dry runs are not supported
	Accounts  *accounts.Accounts
	Fleet     *fleet.Fleet

	// Version is what GET /v1/health says.
	Version string
	// Dir is where uploads are kept, in uploads/ID.
	Dir string
	// MaxUpload is the size limit of one upload in bytes; 0: 64 GiB.
	MaxUpload int64
	// ImageFile returns the path of an image's file on the server.
	ImageFile func(*api.Image) string
	// ExportFile returns the path and SHA-256 of a file that an export has made, by the ID of the image, or that of the operation if it
	// was made of a volume; not_found if there is none. Nil: there are none.
	ExportFile func(id, format string) (path, sum string, err error)
	// PageKey signs page tokens. Servers that share clients share it; empty: a random one, so that tokens end with the
	// process.
	PageKey []byte
	// Log is where requests are logged; nil: slog.Default.
	Log *slog.Logger
}
