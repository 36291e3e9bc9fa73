/** A style, as a text: esbuild puts it there. */
declare module "*.css" {
    const text: string;
    export default text;
}
