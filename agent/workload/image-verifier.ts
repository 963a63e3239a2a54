import type { Remote } from "./attest.ts";

/** Says of a container's image what its signatures say. */
export interface ImageVerifier {
  /**
   * Values of selectors for the image, named as the runtime names it: repository and digest. Throws `denied` when it is
   * not signed as it must be, and `unavailable` when that cannot be found out.
   */
  verify(image: string): Promise<readonly string[]>;
  /** The same of an image that was verified before, so that nobody has to be asked. */
  held(image: string): readonly string[] | undefined;
}

/** Waits for the registry's turn only where it has to be asked. */
export async function verified(images: ImageVerifier, image: string, remote: Remote): Promise<readonly string[]> {
  return images.held(image) ?? (await remote("image registry", () => images.verify(image)));
}
