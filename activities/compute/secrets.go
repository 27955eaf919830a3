package compute

import "context"

// Secrets are the keys of storage clusters that the hypervisor opens disks with. Each is known by the ID of the pool that it is for.
// Nobody gets one back from the hypervisor.
type Secrets interface {
	// SetSecret has the hypervisor know the key of a pool, or another one than before.
	SetSecret(ctx context.Context, pool, key string) error
	// DropSecret has it forget the key. It is content if it knows none.
	DropSecret(ctx context.Context, pool string) error
	// ListSecrets tells of which pools it knows the key. Secrets that are not ours are not told of.
	ListSecrets(ctx context.Context) ([]string, error)
}
