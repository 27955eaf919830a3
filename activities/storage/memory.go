package storage

import (
	"context"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Memories is what a driver does for the memory of guests, each of which is a file that the hypervisor writes and reads. In a pool that
// is none of files it is one of the node, until the pool has it. A driver that cannot have them need not be one. All methods may
// be called again after any interruption.
type Memories interface {
	// PlaceMemory says where the hypervisor is to write a memory of at most size bytes: no_capacity if there is no room for it.
	// What is there already stays, and counts as room.
	PlaceMemory(ctx context.Context, m steps.MemoryFile, size int64) (path string, err error)
	// LocateMemory says where the hypervisor writes it, whether it is there or not.
	LocateMemory(m steps.MemoryFile) (path string, err error)
	// SealMemory says of what the hypervisor has written that all is kept that goes with it. In a pool of files that is only needed of
	// one that says so, since layers say it else, and of one that is put aside it never is. Not_found: there is none.
	SealMemory(ctx context.Context, m steps.MemoryFile) error
	// KeepMemory makes durable what the hypervisor has written, and says how much that is. Not_found: there is none, or it was not
	// sealed and has to be. Tell may be nil.
	KeepMemory(ctx context.Context, m steps.MemoryFile, tell func(api.Progress)) (size int64, err error)
	// LendMemory has it be in a file while use is called. Not_found: there is none. Tell may be nil.
	LendMemory(ctx context.Context, m steps.MemoryFile, tell func(api.Progress), use func(path string) error) error
	// RemoveMemory removes it. It is content if it is not there.
	RemoveMemory(ctx context.Context, m steps.MemoryFile) error
}

// checkpointsDir is the directory of a pool in which memories are, and memoryExt what their names end with.
const (
	checkpointsDir = "checkpoints"
	memoryExt      = ".memory"
)

// KindMemory is a file with the memory of a guest, as List calls it.
const KindMemory = "memory"

// MemoriesOf returns the driver as one that keeps memories, or says that it cannot.
func MemoriesOf(driver any, poolType string) (Memories, error) {
	if m, ok := driver.(Memories); ok {
		return m, nil
	}
	return nil, problem.New(problem.Unsupported, "pools of type %s keep no memory of guests", poolType).Try("keep the VM's disks in another pool")
}

// CheckMemory refuses a memory that leads nowhere.
func CheckMemory(m steps.MemoryFile) error {
	if !api.IsUUID(m.Memory) {
		return problem.New(problem.Invalid, "%q cannot be the name of a guest's memory", m.Memory)
	}
	if m.Pool.Type == api.PoolRBD {
		return CheckRBDPool(m.Pool)
	}
	return checkPool(m.Pool)
}

// NoMemory is the problem of a memory that is not there.
func NoMemory(m steps.MemoryFile) *problem.Problem {
	return problem.New(problem.NotFound, "there is no memory %s in pool %s", m.Memory, m.Pool.Path)
}

// memoryFile is where a memory is below the directory of its pool.
func memoryFile(m steps.MemoryFile) string { return checkpointsDir + "/" + m.Memory + memoryExt }

// writtenMemory is where the hypervisor writes it, below the directory of a pool of files: one that has to be sealed is half-made until it is.
func writtenMemory(m steps.MemoryFile) string {
	if m.Seal {
		return memoryFile(m) + tempExt
	}
	return memoryFile(m)
}

// NoRoomForMemory is the problem of a place, of which u says how much room it has, where a memory would not fit.
func NoRoomForMemory(path string, u api.PoolUsage, need int64) *problem.Problem {
	return problem.New(problem.NoCapacity, "%s has no room for the memory of the guest", path).Because("%s of %s are free, and it may have %s", api.Size(u.Free), api.Size(u.Capacity), api.Size(need)).
		Try("delete checkpoints, snapshots or volumes that are not needed")
}

// memories returns the driver of the pool of a memory.
func (b ByType) memories(m steps.MemoryFile) (Memories, error) {
	d, err := b.of(m.Pool.Type)
	if err != nil {
		return nil, err
	}
	return MemoriesOf(d, m.Pool.Type)
}

// PlaceMemory implements Memories, for drivers that are.
func (b ByType) PlaceMemory(ctx context.Context, m steps.MemoryFile, size int64) (string, error) {
	d, err := b.memories(m)
	if err != nil {
		return "", err
	}
	return d.PlaceMemory(ctx, m, size)
}

// LocateMemory implements Memories, for drivers that are.
func (b ByType) LocateMemory(m steps.MemoryFile) (string, error) {
	d, err := b.memories(m)
	if err != nil {
		return "", err
	}
	return d.LocateMemory(m)
}

// SealMemory implements Memories, for drivers that are.
func (b ByType) SealMemory(ctx context.Context, m steps.MemoryFile) error {
	d, err := b.memories(m)
	if err != nil {
		return err
	}
	return d.SealMemory(ctx, m)
}

// KeepMemory implements Memories, for drivers that are.
func (b ByType) KeepMemory(ctx context.Context, m steps.MemoryFile, tell func(api.Progress)) (int64, error) {
	d, err := b.memories(m)
	if err != nil {
		return 0, err
	}
	return d.KeepMemory(ctx, m, tell)
}

// LendMemory implements Memories, for drivers that are.
func (b ByType) LendMemory(ctx context.Context, m steps.MemoryFile, tell func(api.Progress), use func(path string) error) error {
	d, err := b.memories(m)
	if err != nil {
		return err
	}
	return d.LendMemory(ctx, m, tell, use)
}

// RemoveMemory implements Memories, for drivers that are.
func (b ByType) RemoveMemory(ctx context.Context, m steps.MemoryFile) error {
	d, err := b.memories(m)
	if err != nil {
		return err
	}
	return d.RemoveMemory(ctx, m)
}

// PlaceMemory implements Memories.
func (m *Mounts) PlaceMemory(ctx context.Context, f steps.MemoryFile, size int64) (path string, err error) {
	d, err := MemoriesOf(m.files, f.Pool.Type)
	if err != nil {
		return "", err
	}
	return use(ctx, m, f.Pool, func(ctx context.Context) (string, error) { return d.PlaceMemory(ctx, f, size) })
}

// LocateMemory implements Memories.
func (m *Mounts) LocateMemory(f steps.MemoryFile) (string, error) {
	d, err := MemoriesOf(m.files, f.Pool.Type)
	if err != nil {
		return "", err
	}
	return d.LocateMemory(f)
}

// SealMemory implements Memories.
func (m *Mounts) SealMemory(ctx context.Context, f steps.MemoryFile) error {
	d, err := MemoriesOf(m.files, f.Pool.Type)
	if err != nil || !f.Seal {
		return err
	}
	return m.done(ctx, f.Pool, func(ctx context.Context) error { return d.SealMemory(ctx, f) })
}

// KeepMemory implements Memories.
func (m *Mounts) KeepMemory(ctx context.Context, f steps.MemoryFile, tell func(api.Progress)) (int64, error) {
	d, err := MemoriesOf(m.files, f.Pool.Type)
	if err != nil {
		return 0, err
	}
	return use(ctx, m, f.Pool, func(ctx context.Context) (int64, error) { return d.KeepMemory(ctx, f, tell) })
}

// LendMemory implements Memories. It is the hypervisor that reads the file, for as long as that takes.
func (m *Mounts) LendMemory(ctx context.Context, f steps.MemoryFile, tell func(api.Progress), use func(path string) error) error {
	d, err := MemoriesOf(m.files, f.Pool.Type)
	if err != nil {
		return err
	}
	return d.LendMemory(ctx, f, tell, use)
}

// RemoveMemory implements Memories.
func (m *Mounts) RemoveMemory(ctx context.Context, f steps.MemoryFile) error {
	d, err := MemoriesOf(m.files, f.Pool.Type)
	if err != nil {
		return err
	}
	return m.done(ctx, f.Pool, func(ctx context.Context) error { return m.unlessNone(f.Pool, d.RemoveMemory(ctx, f)) })
}

var (
	_ Memories = ByType(nil)
	_ Memories = (*Mounts)(nil)
	_ Memories = (*Dir)(nil)
	_ Memories = (*Fake)(nil)
)
