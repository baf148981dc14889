// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"braid/cmd/internal/cli"
	"braid/mdm/client"
	"braid/mdm/pb"
)

// volume is what -o json shows; the names are kept stable.
type volume struct {
	ID            uint64   `json:"id"`
	Name          string   `json:"name"`
	Size          uint64   `json:"size"`
	Replicas      uint32   `json:"replicas"`
	StripeUnit    uint32   `json:"stripe_unit"`
	StripeWidth   uint32   `json:"stripe_width"`
	BlockSize     uint32   `json:"block_size"`
	PGSet         uint32   `json:"pg_set"`
	Generation    uint64   `json:"generation"`
	Attached      bool     `json:"attached"`
	AttachedBy    string   `json:"attached_by"`
	AttachedSince string   `json:"attached_since"`
	Warnings      []string `json:"warnings,omitempty"`
}

func newVolume(v *pb.Volume) volume {
	return volume{ID: v.Id, Name: v.Name, Size: v.Size, Replicas: v.Replicas, StripeUnit: v.StripeUnit,
		StripeWidth: v.StripeWidth, BlockSize: v.BlockSize, PGSet: v.PgSet, Generation: v.Generation,
		Attached: v.AttachedBy != "", AttachedBy: v.AttachedBy, AttachedSince: v.AttachedSince}
}

func (a *app) volumeCommand() *cobra.Command {
	return group("volume", "Create, show, resize, rename and delete volumes", a.volumeCreate(), a.volumeList(),
		a.volumeShow(), a.volumeResize(), a.volumeRename(), a.volumeDelete())
}

func (a *app) volumeCreate() *cobra.Command {
	req := &pb.CreateVolumeRequest{}
	var sizeText, unitText string
	c := &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Create a volume",
		Long: `Create a volume. It is thin: space is taken when it is written, and given back
when it is discarded.

Names have 1 to 63 of the characters a-z 0-9 . _ -. Everything but the size is
fixed for the volume's life. A request larger than the stripe unit is spread over
as many chunks as the stripe width says, which lie on different devices.`,
		Example: `  scli volume create db --size 100G
  scli volume create scratch --size 1T --replicas 1
  scli volume create image --size 20G --block-size 512      for disk images made elsewhere`,
		Args: named("name"),
		RunE: func(c *cobra.Command, args []string) (err error) {
			req.Name = args[0]
			if sizeText == "" {
				return cli.Usagef("volume create %s: how large? Give --size, like --size 10G", req.Name)
			}
			if req.Size, err = parseSize("--size", sizeText); err != nil {
				return err
			}
			unit, err := parseSize("--stripe-unit", unitText)
			if err != nil {
				return err
			}
			req.StripeUnit = uint32(min(unit, 1<<31))
			if req.Replicas == 0 || req.StripeWidth == 0 || unit == 0 || req.BlockSize == 0 {
				return cli.Usagef("volume create %s: replicas, stripe unit, stripe width and block size "+
					"cannot be 0", req.Name)
			}
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				resp, err := mdm.CreateVolume(ctx, req)
				return a.changed(resp, err, "created")
			})
		},
	}
	f := c.Flags()
	f.StringVar(&sizeText, "size", "", "size, a multiple of 4096 (required)")
	f.Uint32Var(&req.Replicas, "replicas", 2, "copies of each block, on different fault sets; 1 to 4")
	f.StringVar(&unitText, "stripe-unit", "64K", "bytes that stay together; a power of two, 4K to 1M")
	f.Uint32Var(&req.StripeWidth, "stripe-width", 8, "chunks that a row is spread over; 1 to 64")
	f.Uint32Var(&req.BlockSize, "block-size", 4096, "logical block size shown to the system; 512 or 4096")
	return c
}

// changed prints a volume that was made or changed.
func (a *app) changed(resp *pb.VolumeResponse, err error, how string) error {
	if err != nil {
		return err
	}
	for _, w := range resp.Warnings {
		fmt.Fprintln(a.warn, "warning:", w)
	}
	v := newVolume(resp.Volume)
	v.Warnings = resp.Warnings
	if a.json() {
		return a.printJSON(v)
	}
	fmt.Fprintf(a.out, "volume %s %s: %s, %d replicas\n", v.Name, how, size(v.Size), v.Replicas)
	return nil
}

func (a *app) volumeList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the volumes",
		Args:  cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				list, err := mdm.ListVolumes(ctx)
				if err != nil {
					return err
				}
				volumes, rows := []volume{}, [][]string{}
				for _, m := range list {
					v := newVolume(m)
					volumes = append(volumes, v)
					rows = append(rows, []string{v.Name, size(v.Size), fmt.Sprint(v.Replicas),
						fmt.Sprintf("%d x %s", v.StripeWidth, size(uint64(v.StripeUnit))),
						fmt.Sprint(v.BlockSize), orDash(v.AttachedBy), orDash(v.AttachedSince)})
				}
				if a.json() {
					return a.printJSON(volumes)
				}
				printTable(a.out, []string{"NAME", ">SIZE", ">REPLICAS", ">STRIPE", ">BLOCK", "ATTACHED BY",
					"SINCE"}, rows)
				return nil
			})
		},
	}
}

func (a *app) volumeShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show one volume",
		Args:  named("volume"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				list, err := mdm.ListVolumes(ctx)
				if err != nil {
					return err
				}
				for _, m := range list {
					if m.Name == args[0] {
						return a.showVolume(newVolume(m))
					}
				}
				return fmt.Errorf("show volume %s: there is no such volume; `scli volume list` shows all",
					args[0])
			})
		},
	}
}

func (a *app) showVolume(v volume) error {
	if a.json() {
		return a.printJSON(v)
	}
	printPairs(a.out, [][2]string{
		{"name", v.Name},
		{"size", fmt.Sprintf("%s (%d bytes)", size(v.Size), v.Size)},
		{"replicas", fmt.Sprint(v.Replicas)},
		{"stripe", fmt.Sprintf("%d chunks wide, unit %s", v.StripeWidth, size(uint64(v.StripeUnit)))},
		{"block size", fmt.Sprint(v.BlockSize)},
		{"attached by", orDash(v.AttachedBy)},
		{"since", orDash(v.AttachedSince)},
		{"generation", fmt.Sprint(v.Generation)},
		{"id", fmt.Sprintf("%d, PG set %d", v.ID, v.PGSet)},
	})
	return nil
}

func (a *app) volumeResize() *cobra.Command {
	var sizeText string
	var shrink bool
	c := &cobra.Command{
		Use:   "resize NAME --size SIZE",
		Short: "Change a volume's size, also while it is attached",
		Long: `Change a volume's size. Growing works while the volume is attached: the block
device follows, then grow the file system (resize2fs, xfs_growfs).

Shrinking cuts off what lies beyond the new end. It needs --shrink and a volume
that is not attached.`,
		Example: `  scli volume resize db --size 200G`,
		Args:    named("volume"),
		RunE: func(c *cobra.Command, args []string) error {
			if sizeText == "" {
				return cli.Usagef("volume resize %s: how large? Give --size, like --size 20G", args[0])
			}
			bytes, err := parseSize("--size", sizeText)
			if err != nil {
				return err
			}
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				resp, err := mdm.ResizeVolume(ctx, args[0], bytes, shrink)
				return a.changed(resp, err, "resized")
			})
		},
	}
	c.Flags().StringVar(&sizeText, "size", "", "new size, a multiple of 4096 (required)")
	c.Flags().BoolVar(&shrink, "shrink", false, "allow a smaller size: what lies beyond is lost")
	return c
}

func (a *app) volumeRename() *cobra.Command {
	return &cobra.Command{
		Use:   "rename NAME NEW-NAME",
		Short: "Give a volume another name, also while it is attached",
		Long: `Give a volume another name, also while it is attached: what uses it notices
nothing. /dev/braid, sdc list and NBD exports show the old name until it is
attached the next time.`,
		Example: `  scli volume rename db db-2026`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) != 2 {
				return cli.Usagef("%s: which volume, and what is it to be called? Usage: %s", c.CommandPath(),
					c.UseLine())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				resp, err := mdm.RenameVolume(ctx, args[0], args[1])
				return a.changed(resp, err, "renamed")
			})
		},
	}
}

func (a *app) volumeDelete() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a volume and all that is on it",
		Long: `Delete a volume and all that is on it. It cannot be undone. The servers free its
space in the background. An attached volume is refused, unless --force is given:
then its user gets errors.`,
		Args: named("volume"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				if err := mdm.DeleteVolume(ctx, args[0], force); err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(map[string]string{"name": args[0], "state": "deleted"})
				}
				fmt.Fprintf(a.out, "volume %s deleted\n", args[0])
				return nil
			})
		},
	}
	c.Flags().BoolVar(&force, "force", false, "delete it even while it is attached")
	return c
}
